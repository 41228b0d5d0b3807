// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sdpa/metal/plan.h"

namespace sdpa::metal {

/// The flash kernels, or the naive one for reading and experiments (forward only).
enum class KernelSet : std::uint8_t { kFlash, kProto };

/// The back end's name: "metal" or "metal_proto".
std::string_view name(KernelSet kernels);

/// What every back end of these kernels says against a problem on a device, whoever launches them.
std::vector<std::string> objections(KernelSet kernels, const Problem& problem, Pass pass,
                                    const DeviceInfo& device);

Plan make_plan(KernelSet kernels, const Problem& problem, const ForwardTensors& tensors,
               const DeviceInfo& device);
Plan make_plan(KernelSet kernels, const Problem& problem, const BackwardTensors& tensors,
               const DeviceInfo& device);

/// The plan of a problem that is only described, its tensors dense.
Plan describe_plan(KernelSet kernels, const Problem& problem, Pass pass, const DeviceInfo& device);

/// `source` by the name of the kernel, from which its specialization can be read. Throws
/// std::invalid_argument for a text that is no kernel's name.
std::string source_of(const std::string& kernel);

}  // namespace sdpa::metal
