// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

namespace mps_sdpa {

/// Binds what torch's launcher of Metal kernels (mps.py) needs: devices, plans, sources. The plans
/// are the library's; here they become Python's numbers.
void bind_metal(nanobind::module_& m);

}  // namespace mps_sdpa
