// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <vector>

#include "sdpa/backend.h"
#include "sdpa/metal/kernel_set.h"

namespace sdpa::metal {

inline constexpr std::size_t kRoles = static_cast<std::size_t>(Role::kScalars) + 1;

/// One piece of a call: its plan, and where its part of each tensor begins (null where absent).
struct Recorded {
  Plan plan;
  std::array<const void*, kRoles> data{};
};

/// A Metal back end for launchers outside the library, such as torch's: among the candidates of a
/// call it chooses and plans as the library's own does, but keeps the plans and launches nothing.
/// It never reads what the views point to. One recorder serves one call.
class Recorder final : public Backend {
 public:
  /// `availability` is what the launcher says of itself.
  Recorder(KernelSet kernels, DeviceInfo device, Availability availability)
      : kernels_(kernels), device_(std::move(device)), availability_(std::move(availability)) {}

  std::string_view name() const override { return metal::name(kernels_); }

  Device device() const override { return Device::kMetal; }

  Availability availability() const override { return availability_; }

  std::vector<std::string> unsupported(const Problem& problem, Pass pass) const override;

  std::string explain(const Problem& problem, Pass pass) const override;

  void forward(const Problem& problem, const ForwardTensors& tensors) const override;

  void backward(const Problem& problem, const BackwardTensors& tensors) const override;

  const std::vector<Recorded>& recorded() const { return recorded_; }

 private:
  const KernelSet kernels_;
  const DeviceInfo device_;
  const Availability availability_;
  mutable std::vector<Recorded> recorded_;
};

}  // namespace sdpa::metal
