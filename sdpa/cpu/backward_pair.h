// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/problem.h"

namespace sdpa::cpu {

/// Whether every head has one query and one key in float32 and nothing but scores: then there are
/// no lanes to fill, and staging a head would take ten times as long as its dot products.
bool is_pair(const Problem& problem);

/// The gradients of such a problem.
void backward_pairs(const Problem& problem, const BackwardTensors& tensors);

}  // namespace sdpa::cpu
