// The decoder with the compiler's own vectors: any CPU.
#include "decoder.h"

static bool always() { return true; }

const Kernels portable_kernels{"portable", always, forward, head, choose_tokens, survey, scratch_floats};
