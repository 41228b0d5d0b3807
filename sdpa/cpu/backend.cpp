// SPDX-License-Identifier: MIT
#include "sdpa/cpu/backend.h"

#include "sdpa/cpu/backward.h"
#include "sdpa/cpu/instruction_set.h"

namespace sdpa::cpu {
namespace {

class CpuBackend final : public Backend {
 public:
  std::string_view name() const override { return "cpu"; }

  Device device() const override { return Device::kCpu; }

  Availability availability() const override { return {}; }

  std::vector<std::string> unsupported(const Problem&, Pass) const override { return {}; }

  std::string explain(const Problem&, Pass) const override {
    return std::string(instruction_set().name);
  }

  void forward(const Problem& problem, const ForwardTensors& tensors) const override {
    instruction_set().kernels.forward(problem, tensors);
  }

  void backward(const Problem& problem, const BackwardTensors& tensors) const override {
    cpu::backward(problem, tensors, instruction_set().kernels.backward);
  }
};

}  // namespace

const Backend& backend() {
  static const CpuBackend instance;
  return instance;
}

}  // namespace sdpa::cpu
