// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstddef>
#include <string>

#include "sdpa/metal/encoding.h"
#include "tests/apple_fake/executor.h"
#include "tests/apple_fake/fake_runtime.h"

namespace sdpa::apple_fake {

/// The GPU that the fake plays.
struct GpuModel {
  std::string name = "Apple M4";
  apple::NSInteger apple_family = 9;  // Apple7 is M1, Apple8 M2, Apple9 M3 and M4
  std::size_t max_buffer_bytes = std::size_t{8} << 30;
  std::size_t max_threadgroup_bytes = 32 << 10;
  std::size_t max_threads = 1024;  // of a threadgroup, before the kernel's own limit
};

/// What goes wrong on this GPU although the caller did nothing wrong.
struct GpuFaults {
  bool no_device = false;
  bool no_queue = false;
  bool no_command_buffer = false;
  bool no_encoder = false;
  bool no_sharing = false;        // memory of the host is refused
  bool raises = false;            // an exception of Objective-C where a library is asked for
  std::string compile_error;      // of every library
  std::string pipeline_error;     // of every pipeline
  std::size_t memory_bytes = -1;  // all buffers together; past it there is no more memory
  std::string command_error;      // of every command buffer
  apple::NSInteger command_error_code = 1;
  bool no_executable = false;  // of any graph
  bool graph_raises = false;   // an exception of Objective-C where a graph is compiled
  bool no_encoding = false;    // of any graph
};

inline constexpr apple::NSInteger kOutOfMemoryCode = 8;  // MTLCommandBufferErrorOutOfMemory

/// Stands for an exception of Objective-C: C++ can catch it, but not look into it.
struct NSException {};

/// The GPU's state, shared by all objects that the fake Metal makes.
struct FakeGpu {
  KernelExecutor& executor;
  GpuModel model = {};
  GpuFaults faults = {};

  // What the device was asked to do, for tests to read.
  std::atomic<int> libraries{0};
  std::atomic<int> pipelines{0};
  std::atomic<int> dispatches{0};
  std::atomic<int> shared_buffers{0};
  std::atomic<int> graphs{0};       // compiled
  std::atomic<int> descriptors{0};  // of attention, in graphs
  std::atomic<std::size_t> allocated_bytes{0};
};

/// Adds Metal to a fake runtime. The GPU outlives the runtime.
void install_metal(FakeRuntime& runtime, FakeGpu& gpu);

/// Adds MPSGraph to a runtime that has Metal.
void install_graph(FakeRuntime& runtime);

}  // namespace sdpa::apple_fake
