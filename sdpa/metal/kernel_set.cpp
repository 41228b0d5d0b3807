// SPDX-License-Identifier: MIT
#include "sdpa/metal/kernel_set.h"

#include "sdpa/metal/specialization.h"

namespace sdpa::metal {

std::string_view name(KernelSet kernels) {
  return kernels == KernelSet::kProto ? "metal_proto" : "metal";
}

std::vector<std::string> objections(KernelSet kernels, const Problem& problem, Pass pass,
                                    const DeviceInfo& device) {
  if (kernels == KernelSet::kProto && pass == Pass::kBackward)
    return {"The naive kernel has no backward pass."};
  return refusals(problem, pass, device);
}

Plan make_plan(KernelSet kernels, const Problem& problem, const ForwardTensors& tensors,
               const DeviceInfo& device) {
  return kernels == KernelSet::kProto ? plan_proto(problem, tensors, device)
                                      : plan_forward(problem, tensors, device);
}

Plan make_plan(KernelSet, const Problem& problem, const BackwardTensors& tensors,
               const DeviceInfo& device) {
  return plan_backward(problem, tensors, device);
}

Plan describe_plan(KernelSet kernels, const Problem& problem, Pass pass, const DeviceInfo& device) {
  return pass == Pass::kForward ? make_plan(kernels, problem, dense_forward(problem), device)
                                : make_plan(kernels, problem, dense_backward(problem), device);
}

std::string source_of(const std::string& kernel) {
  Dispatch dispatch;
  dispatch.kernel = kernel;
  dispatch.specialization = instantiation(parse_host_name(kernel));
  return source(dispatch);
}

}  // namespace sdpa::metal
