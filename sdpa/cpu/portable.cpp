// SPDX-License-Identifier: MIT
#include "sdpa/cpu/kernels.h"
#include "sdpa/cpu/simd_vector.h"

namespace sdpa::cpu {

Kernels portable_kernels() { return make_kernels<Vector4>(); }

}  // namespace sdpa::cpu
