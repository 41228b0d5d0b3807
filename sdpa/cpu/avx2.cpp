// SPDX-License-Identifier: MIT
#include "sdpa/cpu/kernels.h"
#include "sdpa/cpu/simd_avx2.h"

namespace sdpa::cpu {

Kernels avx2_kernels() { return make_kernels<Avx2>(); }

}  // namespace sdpa::cpu
