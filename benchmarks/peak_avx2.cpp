// SPDX-License-Identifier: MIT
#include "benchmarks/peak_kernel.h"
#include "sdpa/cpu/simd_avx2.h"

namespace sdpa::benchmarks {

Peak avx2_peak() { return make_peak<cpu::Avx2>(); }

}  // namespace sdpa::benchmarks
