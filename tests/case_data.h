// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "tests/cases.h"
#include "tests/fenced_tensor.h"

// The tensors of a case and the results the oracle expects.

namespace sdpa::cases {

/// The problem of a case; `seed` is that of dropout.
Problem problem_of(const Case& spec, std::uint64_t seed);

/// All tensors of a case, with random inputs, and their views as a back end receives them: rank 4,
/// broadcast dimensions with stride 0.
struct CaseData {
  CaseData(const Case& spec, std::uint64_t seed);

  ForwardTensors forward_tensors() const;
  BackwardTensors backward_tensors() const;

  /// Outputs as the constructor leaves them.
  void reset_outputs();

  Case spec;
  Problem problem;
  Tensor query, key, value, mask, sinks, grad_out, grad_lse;
  Tensor out, lse, grad_query, grad_key, grad_value, grad_mask, grad_sinks;
};

/// Fills rows [first, last) of every head of a tensor.
void fill_rows(const TensorView& view, std::int64_t first, std::int64_t last, double value);

/// NaN in the keys and values that a mask of the pattern kTail hides from every query; nothing for
/// another case. The oracle's results stay the same.
void poison_hidden_keys(CaseData& data);

/// The results that the oracle gives for the same inputs, in row-major order.
struct Expected {
  std::vector<double> out, lse;
  std::vector<double> grad_query, grad_key, grad_value, grad_mask, grad_sinks;
};

/// The oracle on float64 copies of the inputs.
Expected expected(const CaseData& data);

}  // namespace sdpa::cases
