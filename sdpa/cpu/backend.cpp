// SPDX-License-Identifier: MIT
#include "sdpa/cpu/backend.h"

#include "sdpa/reference.h"

namespace sdpa::cpu {
namespace {

class CpuBackend final : public Backend {
 public:
  std::string_view name() const override { return "cpu"; }

  Device device() const override { return Device::kCpu; }

  Availability availability() const override { return {}; }

  std::vector<std::string> unsupported(const Problem&, Pass) const override { return {}; }

  std::string explain(const Problem&, Pass) const override {
    return "reference loops in double precision";
  }

  void forward(const Problem& problem, const ForwardTensors& tensors) const override {
    reference::forward(problem, tensors);
  }

  void backward(const Problem& problem, const BackwardTensors& tensors) const override {
    reference::backward(problem, tensors);
  }
};

}  // namespace

const Backend& backend() {
  static const CpuBackend instance;
  return instance;
}

}  // namespace sdpa::cpu
