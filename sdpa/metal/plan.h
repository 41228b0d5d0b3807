// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sdpa/params.h"
#include "sdpa/problem.h"

namespace sdpa::metal {

/// What a plan depends on besides the problem. The defaults are a base M4.
struct DeviceInfo {
  std::string name = "m4";
  int family = 9;  ///< Apple7: M1, Apple8: M2, Apple9: M3 and M4, Apple10: M5
  int cores = 10;
  std::int64_t threadgroup_bytes = 32768;
  std::int64_t max_threads = 1024;  ///< of a threadgroup; lower it to plan again for a pipeline
};

/// What is bound to one argument of a kernel. Tensors go by their own names; the last two are the
/// parameter blocks; those between are scratch memory.
enum class Role : std::uint8_t {
  kQuery,
  kKey,
  kValue,
  kMask,
  kSinks,
  kOut,
  kLse,
  kGradOut,
  kGradLse,
  kGradQuery,
  kGradKey,
  kGradValue,
  kGradMask,
  kGradSinks,
  kDelta,
  kClasses,
  kPartialOut,
  kPartialLse,
  kKeep,
  kParams,
  kScalars,
};

std::string_view name(Role role);

/// Threads or threadgroups in three dimensions.
struct Extent {
  std::int64_t x = 1, y = 1, z = 1;

  std::int64_t count() const { return x * y * z; }
};

/// One launch. It sees the results of all launches before it.
struct Dispatch {
  std::string kernel;                  ///< the host name; names the specialization fully
  std::string specialization;          ///< the line of source that instantiates it
  Extent grid;                         ///< threadgroups
  Extent group;                        ///< threads of a threadgroup
  std::int64_t threadgroup_bytes = 0;  ///< static in the kernel: nothing to set
  std::vector<Role> buffers;  ///< [[buffer(i)]] is buffers[i]; each is bound, none is spare
};

/// Memory that lives as long as the plan runs; its contents before do not matter.
struct Scratch {
  Role role;
  std::int64_t bytes;
};

/// How to compute one pass: launches in order, what they share, and the parameter blocks (pass
/// `params` and `scalars` byte by byte, or as lists of 64-bit integers and 32-bit floats).
struct Plan {
  std::vector<Dispatch> dispatches;
  std::vector<Scratch> scratch;
  AttentionParams params{};
  AttentionScalars scalars{};
};

/// Full sentences that say why a problem cannot run on this device; none if it can. A device whose
/// `max_threads` is lower gets smaller tiles before it gets a refusal.
std::vector<std::string> refusals(const Problem& problem, Pass pass, const DeviceInfo& device);

/// The plans below read shapes, strides and presence of the views, never `data`. Views have rank 4;
/// all but masks need a last stride of 1 (`needs_copy`). The problem must not be refused, and not
/// be empty.
///
/// Forward chooses split keys by itself where rows are too few to fill the device.
Plan plan_forward(const Problem& problem, const ForwardTensors& tensors, const DeviceInfo& device);

/// Tiles of queries whatever the number of rows.
Plan plan_tiles(const Problem& problem, const ForwardTensors& tensors, const DeviceInfo& device);

/// Split keys whatever the number of rows: partial results, then their merge.
Plan plan_decode(const Problem& problem, const ForwardTensors& tensors, const DeviceInfo& device);

/// The naive kernel, one thread a row (forward only).
Plan plan_proto(const Problem& problem, const ForwardTensors& tensors, const DeviceInfo& device);

Plan plan_backward(const Problem& problem, const BackwardTensors& tensors,
                   const DeviceInfo& device);

/// The counter, the seed and the threshold of dropout.
void set_dropout(AttentionParams& params, const Dropout& dropout);

/// Whether a tensor must be copied before a kernel can read it: its last stride is not 1.
bool needs_copy(const TensorView& view);

/// Dense tensors without data, for a plan that is only printed.
ForwardTensors dense_forward(const Problem& problem);
BackwardTensors dense_backward(const Problem& problem);

/// The complete source of one launch's library: prelude, kernels, specialization. MSL 3.1.
std::string source(const Dispatch& dispatch);

/// A few lines for people: launches with their grids and buffers, scratch memory.
std::string to_string(const Plan& plan);

}  // namespace sdpa::metal
