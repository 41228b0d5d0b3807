// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

namespace mps_sdpa {

/// Binds the double-precision oracle of sdpa/reference.h, for tests and the command.
void bind_oracle(nanobind::module_& m);

}  // namespace mps_sdpa
