// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/problem.h"

namespace sdpa {

/// The door: everything a caller can get wrong is found here and nowhere else. Each function throws
/// std::invalid_argument with one sentence. `validate_inputs` leaves `out` and `lse` alone.
void validate(const ForwardTensors& tensors, const Attributes& attributes);
void validate_inputs(const ForwardTensors& tensors, const Attributes& attributes);
void validate(const BackwardTensors& tensors, const Attributes& attributes);

/// Sizes that broadcast together, as torch does: equal or 1. Names both arguments when they do not.
std::int64_t broadcast_size(std::int64_t first, std::int64_t second, const char* what);

}  // namespace sdpa
