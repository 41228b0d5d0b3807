// SPDX-License-Identifier: MIT
#include "sdpa/cpu/kernels.h"
#include "sdpa/cpu/simd_neon_bf16.h"

namespace sdpa::cpu {

Kernels neon_bf16_kernels() { return make_kernels<NeonBFloat16>(); }

}  // namespace sdpa::cpu
