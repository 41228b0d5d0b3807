// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "sdpa/backend.h"

namespace mps_sdpa {

/// A back end that torch's launcher runs itself: among the candidates of a call it is chosen or
/// refuses as the one of that name does, and computes nothing.
class LeftToTorch final : public sdpa::Backend {
 public:
  LeftToTorch(std::string name, sdpa::Availability availability)
      : name_(std::move(name)), availability_(std::move(availability)) {}

  std::string_view name() const override { return name_; }

  sdpa::Device device() const override { return sdpa::Device::kMetal; }

  sdpa::Availability availability() const override { return availability_; }

  std::vector<std::string> unsupported(const sdpa::Problem& problem, sdpa::Pass) const override;

  std::string explain(const sdpa::Problem& problem, sdpa::Pass pass) const override;

  void forward(const sdpa::Problem&, const sdpa::ForwardTensors&) const override {}

  void backward(const sdpa::Problem&, const sdpa::BackwardTensors&) const override {}

 private:
  const std::string name_;
  const sdpa::Availability availability_;
};

/// Binds what torch's launcher of graphs (graphs.py) needs.
void bind_graphs(nanobind::module_& m);

}  // namespace mps_sdpa
