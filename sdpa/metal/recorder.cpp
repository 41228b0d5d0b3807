// SPDX-License-Identifier: MIT
#include "sdpa/metal/recorder.h"

#include "sdpa/metal/roles.h"

namespace sdpa::metal {
namespace {

/// Where each tensor begins, by role; null where absent.
template <typename Tensors>
std::array<const void*, kRoles> addresses(const Tensors& tensors) {
  std::array<const void*, kRoles> data{};
  for_each_role(tensors, [&](Role role, const TensorView& view) {
    data[static_cast<std::size_t>(role)] = view.is_present() ? view.data : nullptr;
  });
  return data;
}

}  // namespace

std::vector<std::string> Recorder::unsupported(const Problem& problem, Pass pass) const {
  return objections(kernels_, problem, pass, device_);
}

std::string Recorder::explain(const Problem& problem, Pass pass) const {
  return to_string(describe_plan(kernels_, problem, pass, device_));
}

void Recorder::forward(const Problem& problem, const ForwardTensors& tensors) const {
  recorded_.push_back({make_plan(kernels_, problem, tensors, device_), addresses(tensors)});
}

void Recorder::backward(const Problem& problem, const BackwardTensors& tensors) const {
  recorded_.push_back({make_plan(kernels_, problem, tensors, device_), addresses(tensors)});
}

}  // namespace sdpa::metal
