// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

namespace mps_sdpa {

/// Binds the table of named cases of tests/cases.h, for tests, benchmark and command.
void bind_cases(nanobind::module_& m);

}  // namespace mps_sdpa
