// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

namespace mps_sdpa {

/// Binds the two passes of packed sequences.
void bind_packed(nanobind::module_& m);

}  // namespace mps_sdpa
