// The decoder with AVX2, FMA and F16C: x86 since 2013.
#include "core.h"

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
#include "decoder.h"

static bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static const Kernels kernels{"avx2", supported, forward, head, choose_tokens, survey, scratch_floats};
const Kernels* const avx2_kernels = &kernels;
#else
const Kernels* const avx2_kernels = nullptr;
#endif
