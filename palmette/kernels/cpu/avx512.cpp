// The decoder with AVX-512 and its dot products of bytes (VNNI): Intel servers since 2019, AMD since Zen 4.
#include "core.h"

#if defined(__AVX512VNNI__)
#include "decoder.h"

static bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

static const Kernels kernels{"avx512", supported, forward, head, choose_tokens, survey, scratch_floats};
const Kernels* const avx512_kernels = &kernels;
#else
const Kernels* const avx512_kernels = nullptr;
#endif
