// SPDX-License-Identifier: MIT
#include "sdpa/cpu/kernels.h"
#include "sdpa/cpu/simd_neon.h"

namespace sdpa::cpu {

Kernels neon_kernels() { return make_kernels<Neon>(); }

}  // namespace sdpa::cpu
