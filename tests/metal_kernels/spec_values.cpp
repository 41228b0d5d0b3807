// SPDX-License-Identifier: MIT
#include "tests/metal_kernels/spec_values.h"

namespace sdpa {

SpecValues spec_values{};

}  // namespace sdpa
