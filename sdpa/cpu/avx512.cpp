// SPDX-License-Identifier: MIT
#include "sdpa/cpu/kernels.h"
#include "sdpa/cpu/simd_avx512.h"

namespace sdpa::cpu {

Kernels avx512_kernels() { return make_kernels<Avx512>(); }

}  // namespace sdpa::cpu
