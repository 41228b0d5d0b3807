// SPDX-License-Identifier: MIT
#include "sdpa/metal/launch.h"

#include <algorithm>

#include "sdpa/metal/foundation.h"

namespace sdpa::metal {

using apple::Error;
using apple::Handle;
using apple::MTLCommandBuffer;
using apple::MTLComputeCommandEncoder;
using apple::MTLSize;
using apple::NSError;
using apple::NSInteger;
using apple::NSUInteger;
using apple::send;
using apple::operator""_sel;

namespace {

enum class Status : NSUInteger { kCompleted = 4 };
constexpr NSInteger kOutOfMemory = 8;  // MTLCommandBufferErrorOutOfMemory

using Commands = Handle<MTLCommandBuffer>;
using Encoder = Handle<MTLComputeCommandEncoder>;

MTLSize size_of(const Extent& extent) {
  return {static_cast<NSUInteger>(extent.x), static_cast<NSUInteger>(extent.y),
          static_cast<NSUInteger>(extent.z)};
}

template <class Block>
void set_block(Encoder encoder, const Block& block, NSUInteger index) {
  send<void>(encoder, "setBytes:length:atIndex:"_sel, static_cast<const void*>(&block),
             NSUInteger{sizeof block}, index);
}

void bind(Encoder encoder, Role role, NSUInteger index, const Plan& plan, const Staging& staging) {
  if (role == Role::kParams) return set_block(encoder, plan.params, index);
  if (role == Role::kScalars) return set_block(encoder, plan.scalars, index);
  send<void>(encoder, "setBuffer:offset:atIndex:"_sel, staging.buffer(role), NSUInteger{0}, index);
}

void encode(Encoder encoder, const Pipeline& pipeline, const Dispatch& dispatch, const Plan& plan,
            const Staging& staging) {
  send<void>(encoder, "setComputePipelineState:"_sel, pipeline.state);
  for (NSUInteger i = 0; i < dispatch.buffers.size(); ++i) {
    bind(encoder, dispatch.buffers[i], i, plan, staging);
  }
  send<void>(encoder, "dispatchThreadgroups:threadsPerThreadgroup:"_sel, size_of(dispatch.grid),
             size_of(dispatch.group));
}

/// Ends the encoding whatever happens: Metal aborts the process where an encoder is dropped open.
class Encoding {
 public:
  explicit Encoding(Commands commands)
      : encoder_(send<Encoder>(commands, "computeCommandEncoder"_sel)) {
    if (!encoder_) throw Error("The GPU gave no command encoder.");
  }

  Encoding(const Encoding&) = delete;
  Encoding& operator=(const Encoding&) = delete;

  ~Encoding() { send<void>(encoder_, "endEncoding"_sel); }

  Encoder encoder() const { return encoder_; }

 private:
  Encoder encoder_;
};

Commands make_commands(const Gpu& gpu) {
  const auto commands = send<Commands>(gpu.queue(), "commandBuffer"_sel);
  if (!commands) throw Error("The GPU gave no command buffer.");
  return commands;
}

}  // namespace

void run_to_end(Commands commands) {
  send<void>(commands, "commit"_sel);
  wait_for(commands);
}

void wait_for(Commands commands) {
  send<void>(commands, "waitUntilCompleted"_sel);
  if (send<Status>(commands, "status"_sel) == Status::kCompleted) return;
  const auto error = send<Handle<NSError>>(commands, "error"_sel);
  const bool no_memory = error && send<NSInteger>(error, "code"_sel) == kOutOfMemory;
  throw Error((no_memory ? "The GPU ran out of memory: " : "The GPU failed: ") + reason_of(error));
}

std::optional<std::int64_t> exceeded_threads(Pipelines& pipelines, const Plan& plan) {
  const apple::AutoreleasePool pool;
  std::optional<std::int64_t> tightest;
  for (const Dispatch& dispatch : plan.dispatches) {
    const std::int64_t allowed = pipelines.find(dispatch)->max_threads;
    if (allowed < dispatch.group.count()) tightest = std::min(tightest.value_or(allowed), allowed);
  }
  return tightest;
}

// Launches of one encoder run in order and see each other's results, so one encoder serves all.
void encode(Pipelines& pipelines, const Plan& plan, const Staging& staging, Commands commands) {
  const Encoding encoding(commands);
  for (const Dispatch& dispatch : plan.dispatches) {
    encode(encoding.encoder(), *pipelines.find(dispatch), dispatch, plan, staging);
  }
}

void launch(const Gpu& gpu, Pipelines& pipelines, const Plan& plan, const Staging& staging) {
  const apple::AutoreleasePool pool;
  const Commands commands = make_commands(gpu);
  encode(pipelines, plan, staging, commands);
  run_to_end(commands);
}

}  // namespace sdpa::metal
