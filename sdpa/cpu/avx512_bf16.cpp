// SPDX-License-Identifier: MIT
#include "sdpa/cpu/kernels.h"
#include "sdpa/cpu/simd_avx512_bf16.h"

namespace sdpa::cpu {

Kernels avx512_bf16_kernels() { return make_kernels<Avx512BFloat16>(); }

}  // namespace sdpa::cpu
