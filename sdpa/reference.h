// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/problem.h"

namespace sdpa::reference {

/// Query rows [first, last) of every head; all of them by default.
struct RowRange {
  std::int64_t first = 0;
  std::int64_t last = std::numeric_limits<std::int64_t>::max();
};

/// The definition of attention: textbook loops in double precision over one query at a time, every
/// feature, no cleverness. All other code is compared with it. Tensors may have any dtype and
/// strides; results are rounded once, to the dtype of the output view.
void forward(const Problem& problem, const ForwardTensors& tensors, RowRange rows = {});

/// The gradients of `forward`; recomputes the softmax and needs neither `out` nor `lse`.
void backward(const Problem& problem, const BackwardTensors& tensors);

/// Whether the probability of (head counted over the batch, query, key) survives dropout.
bool is_kept(const Dropout& dropout, std::int64_t batch_head, std::int64_t query, std::int64_t key);

}  // namespace sdpa::reference
