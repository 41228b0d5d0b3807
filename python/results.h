// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

#include "tensors.h"

// New tensors for what a call computes. `device` is where they shall lie; none: on the CPU.

namespace mps_sdpa {

/// float64 for float64 inputs, else float32.
sdpa::DType wide(sdpa::DType dtype);

/// [..., heads, rows] for [..., heads, rows, columns].
sdpa::TensorView without_columns(sdpa::TensorView view, sdpa::DType dtype);

/// The output of a call, and its log-sum-exp if wanted, else None.
struct Outputs {
  nb::object out, lse;
};

/// Makes the outputs and writes their views to `t`.
Outputs allocate_outputs(sdpa::ForwardTensors& t, bool want_lse, nb::handle device = {});

/// A gradient that is summed into: dense, filled with zeros.
nb::object allocate_sum(sdpa::TensorView& gradient, const sdpa::TensorView& input,
                        sdpa::DType dtype, nb::handle device = {});

/// The gradients a caller can ask for, as bits of `wanted`, in the order they are returned.
enum Gradient : int { kQuery = 1, kKey = 2, kValue = 4, kMask = 8, kSinks = 16 };

/// Five gradients or None each; their views are written to `t`. Those of the mask and the sinks,
/// which are summed into, hold zeros.
nb::list allocate_gradients(sdpa::BackwardTensors& t, int wanted, nb::handle device = {});

}  // namespace mps_sdpa
