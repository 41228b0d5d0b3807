// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <span>
#include <string>

#include "sdpa/problem.h"
#include "sdpa/select.h"

namespace sdpa {

/// Which back end to use, by name or "auto", what calibration knows, and the back ends to choose
/// from in order of preference; none: those of the registry.
struct Request {
  std::string backend = std::string(kAuto);
  Thresholds thresholds{};
  std::span<const Backend* const> candidates{};
};

/// The problem that these tensors and attributes pose. Tensors have rank >= 2 and any strides;
/// leading dimensions broadcast as in torch; a head is dimension -3. Throws std::invalid_argument
/// with one sentence that names the argument, what came and what is allowed. `out` and `lse` may be
/// absent.
Problem make_problem(const ForwardTensors& tensors, const Attributes& attributes);

/// Computes `out` (and `lse` where present): validate > select > run. Where the choice is the
/// framework's own function (`Choice::backend == nullptr`) nothing is computed.
Choice forward(const ForwardTensors& tensors, const Attributes& attributes,
               const Request& request = {});

/// Computes the gradients that are present.
Choice backward(const BackwardTensors& tensors, const Attributes& attributes,
                const Request& request = {});

/// The shape of the output for these inputs: broadcast batch dimensions, query's heads and length,
/// value's dimension.
TensorView output_shape(const TensorView& query, const TensorView& key, const TensorView& value);

}  // namespace sdpa
