// SPDX-License-Identifier: MIT
#include "benchmarks/peak_kernel.h"
#include "sdpa/cpu/simd_avx512_bf16.h"

namespace sdpa::benchmarks {

Peak avx512_bf16_peak() { return make_peak<cpu::Avx512BFloat16>(); }

}  // namespace sdpa::benchmarks
