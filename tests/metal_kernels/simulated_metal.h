// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "sdpa/backend.h"
#include "sdpa/metal/plan.h"
#include "tests/metal_sim/sim.h"

namespace sdpa::metal {

/// Memory that a kernel sees under one role.
struct RoleMemory {
  void* data = nullptr;
  std::size_t bytes = 0;
};

using RoleMemories = std::map<Role, RoleMemory>;

/// The name under which the simulator has a kernel: its own where it was compiled, else that of the
/// kernel for all specializations, which from now on runs as this one.
std::string select_function(const std::string& host_name);

/// Runs the launches of a plan in the simulator, in order. Throws std::runtime_error with the first
/// fault. Returns the counters of each launch.
std::vector<sim::Counters> run_plan(const Plan& plan, RoleMemories memory,
                                    const sim::Options& options);

/// Which plan a back end makes of a forward pass.
enum class ForwardPlan { kChosen, kTiles, kDecode, kProto };

/// One launch that a back end made, and what it did.
struct Launched {
  Plan plan;
  Dispatch dispatch;
  sim::Counters counters;
};

/// What a test does between a plan and its launches.
struct Probe {
  std::function<void(Plan&)> change;          ///< applied to every plan, if there is one
  std::vector<Launched>* launched = nullptr;  ///< gets every launch
};

/// A back end that plans as the one for Apple GPUs does and computes in the simulator.
class SimulatedMetal : public Backend {
 public:
  SimulatedMetal(DeviceInfo device, sim::Options options, ForwardPlan forward_plan,
                 Probe probe = {})
      : device_(std::move(device)),
        options_(options),
        forward_plan_(forward_plan),
        probe_(std::move(probe)) {}

  std::string_view name() const override { return "simulated metal"; }

  Device device() const override { return Device::kCpu; }

  Availability availability() const override { return {}; }

  std::vector<std::string> unsupported(const Problem& problem, Pass pass) const override;

  std::string explain(const Problem& problem, Pass pass) const override;

  void forward(const Problem& problem, const ForwardTensors& tensors) const override;

  void backward(const Problem& problem, const BackwardTensors& tensors) const override;

 protected:
  /// Runs the launches of a plan and brings back what they wrote.
  virtual void run(Plan plan, const RoleMemories& memory) const;

 private:
  Plan forward_plan(const Problem& problem, const ForwardTensors& tensors) const;

  DeviceInfo device_;
  sim::Options options_;
  ForwardPlan forward_plan_;
  Probe probe_;
};

}  // namespace sdpa::metal
