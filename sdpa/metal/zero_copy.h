// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <string>

#include "sdpa/backend.h"
#include "sdpa/metal/attention_graph.h"
#include "sdpa/metal/runtime.h"

/// Graphs on the buffers and the stream of a framework above Metal, such as torch: nothing is
/// copied, and nobody waits.
namespace sdpa::metal {

/// The functions of torch and of the system that its stream needs, by what torch's MPSStream.h and
/// mps.h declare. A member function takes its object first.
struct StreamFunctions {
  void* (*current_stream)() = nullptr;           ///< at::mps::getCurrentMPSStream
  apple::Id (*command_buffer)(void*) = nullptr;  ///< at::mps::MPSStream::commandBuffer
  void (*end_coalescing)(void*) = nullptr;       ///< at::mps::MPSStream::endKernelCoalescing
  void* (*queue)() = nullptr;                    ///< torch::mps::get_dispatch_queue
  void (*dispatch_sync)(void* queue, void* context, void (*work)(void*)) = nullptr;
};

/// Where a whole tensor of the call lies: its view's address stands for `offset` in the buffer.
struct Place {
  const void* data = nullptr;
  apple::Id buffer = nullptr;
  std::size_t offset = 0;
};

/// "mpsgraph_zc" for one call, whose tensors have to lie densely.
class ZeroCopy final : public Backend {
 public:
  ZeroCopy(const StreamFunctions& stream, std::map<Role, Place> places,
           const GraphLimits& limits = {})
      : stream_(stream), places_(std::move(places)), limits_(limits) {}

  std::string_view name() const override { return "mpsgraph_zc"; }

  Device device() const override { return Device::kMetal; }

  Availability availability() const override;

  std::vector<std::string> unsupported(const Problem& problem, Pass pass) const override;

  std::string explain(const Problem& problem, Pass pass) const override;

  void forward(const Problem& problem, const ForwardTensors& tensors) const override;

  void backward(const Problem& problem, const BackwardTensors& tensors) const override;

 private:
  template <class Tensors>
  void run(const Problem& problem, const Tensors& tensors) const;

  const StreamFunctions stream_;
  const std::map<Role, Place> places_;
  const GraphLimits limits_;
};

/// Why graphs cannot run here at all; none if they can.
std::optional<std::string> reason_against_graphs();

/// Why `pointer` is not a Metal buffer that holds `content` from `offset` on; none if it is. It has
/// to point to readable memory, whatever that holds.
std::optional<std::string> reason_against_buffer(const void* pointer, std::size_t offset,
                                                 std::span<const std::byte> content);

/// Drops all compiled graphs of this back end: for when memory runs out.
void drop_graphs();

}  // namespace sdpa::metal
