// SPDX-License-Identifier: MIT
#pragma once

#include <map>

#include "tests/mpsgraph/values.h"

namespace sdpa::values {

using Tensors = std::map<metal::Role, Value>;

/// The outputs of a described graph. Throws std::out_of_range where an input is missing, and
/// std::logic_error where one has another shape or type than the graph says.
Tensors evaluate(const metal::Graph& graph, const Tensors& inputs);

}  // namespace sdpa::values
