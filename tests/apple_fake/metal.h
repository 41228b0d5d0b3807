// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/apple_fake/foundation.h"
#include "tests/apple_fake/gpu.h"

/// The objects of the fake Metal that more than one file knows.
namespace sdpa::apple_fake {

using apple::NSInteger;
using apple::NSUInteger;

inline FakeGpu& current_gpu() { return current_runtime().part<FakeGpu>(); }

/// Memory that the GPU sees: the fake's own, or pages of the host.
struct Buffer : Body {
  FakeGpu& gpu;
  std::vector<std::byte> own;
  std::byte* data;
  std::size_t bytes;
  std::atomic<int> in_flight{0};  // command buffers that were committed and not waited for

  Buffer(FakeGpu& from, std::size_t size);
  Buffer(FakeGpu& from, void* pages, std::size_t size);
  ~Buffer() override;

  void* contents();

  NSUInteger length() { return bytes; }
};

struct PipelineState : Body {
  KernelInfo kernel;

  explicit PipelineState(KernelInfo info) : kernel(std::move(info)) {}

  NSUInteger max_threads() { return kernel.max_threads; }
};

/// -[MTLDevice newCommandQueue].
Made make_queue();

/// For the frameworks above Metal: a command buffer of a queue, work in it that is no kernel of
/// ours, and its commit.
Made make_command_buffer(apple::Id queue);
apple::Id queue_of(apple::Id command_buffer);
void add_task(apple::Id command_buffer, std::function<void()> task, std::vector<Hold> held);
void commit(apple::Id command_buffer);

/// Whether an object is the device that the system gave.
void require_device(apple::Id object);

void install_device(FakeRuntime& runtime);
void install_commands(FakeRuntime& runtime);

}  // namespace sdpa::apple_fake
