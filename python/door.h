// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "sdpa/tensor.h"

// The fast door: a call of torch's function on plain CPU tensors, with or without a gradient, from
// its arguments to its result. On a tiny problem each step of Python's that is saved here counts.

namespace mps_sdpa {

/// The log-sum-exp of a call that autograd will come back to, without the cost of a tensor.
struct SavedLse {
  std::unique_ptr<double[]> memory;
  sdpa::TensorView view;
  bool gradients_fit = false;  ///< they come in the shapes and dtypes of the inputs
};

/// Binds the door and the two passes of its autograd function.
void bind_door(nanobind::module_& m);

}  // namespace mps_sdpa
