// SPDX-License-Identifier: MIT
#include "benchmarks/peak_kernel.h"
#include "sdpa/cpu/simd_avx512.h"

namespace sdpa::benchmarks {

Peak avx512_peak() { return make_peak<cpu::Avx512>(); }

}  // namespace sdpa::benchmarks
