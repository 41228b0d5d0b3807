// SPDX-License-Identifier: MIT
#include "benchmarks/peak_kernel.h"
#include "sdpa/cpu/simd_vector.h"

namespace sdpa::benchmarks {

Peak portable_peak() { return make_peak<cpu::Vector4>(); }

}  // namespace sdpa::benchmarks
