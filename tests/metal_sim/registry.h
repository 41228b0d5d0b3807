// SPDX-License-Identifier: MIT
// What the executor asks the table of kernels for.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "kernel.h"

namespace sim {

/// The function constants of the library that holds this kernel.
std::vector<FunctionConstant> constants_of(const std::string& name);

}  // namespace sim
