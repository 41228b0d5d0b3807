// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/backend.h"
#include "sdpa/metal/attention_graph.h"
#include "tests/mpsgraph/evaluate.h"

namespace sdpa::values {

/// A back end that describes graphs as the one for MPSGraph does and evaluates them here.
class EvaluatedGraphs : public Backend {
 public:
  EvaluatedGraphs(metal::GraphLimits limits, bool has_descriptor)
      : limits_(limits), has_descriptor_(has_descriptor) {}

  std::string_view name() const override { return "evaluated graphs"; }

  Device device() const override { return Device::kCpu; }

  Availability availability() const override { return {}; }

  std::vector<std::string> unsupported(const Problem& problem, Pass pass) const override;

  std::string explain(const Problem& problem, Pass pass) const override;

  void forward(const Problem& problem, const ForwardTensors& tensors) const override;

  void backward(const Problem& problem, const BackwardTensors& tensors) const override;

 private:
  template <typename Tensors>
  metal::GraphSpec spec_for(const Problem& problem, const Tensors& tensors) const;

  metal::GraphLimits limits_;
  bool has_descriptor_;
};

/// The elements of a view of rank 4, each broadcast dimension once where `distinct`.
Value value_of(const TensorView& view, bool distinct);

}  // namespace sdpa::values
