// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "sdpa/metal/encoding.h"

/// Where the fake GPU gets its arithmetic from.
///
/// The fake knows Metal's rules for objects and commands; what a kernel computes is asked of an
/// executor: the simulator, or plain C++ functions (host_kernels.h).
namespace sdpa::apple_fake {

inline constexpr std::size_t kArgumentSlots = 31;  // Metal's argument table for buffers

/// The part of a buffer that a kernel sees at one index. No data: nothing is bound there.
struct BoundBuffer {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
};

struct Launch {
  std::string kernel;
  apple::MTLSize grid;   // in threadgroups
  apple::MTLSize group;  // in threads
  std::array<BoundBuffer, kArgumentSlots> buffers;
};

/// What a kernel wants at one index of the argument table.
struct Binding {
  std::size_t index;
  std::size_t bytes;  // at least so many
};

struct KernelInfo {
  std::string name;
  std::size_t max_threads = 1024;  // of one threadgroup
  std::size_t threadgroup_bytes = 0;
  std::vector<Binding> bindings = {};
};

/// The kernels of a source, or what the compiler says against it.
struct CompiledSource {
  std::vector<KernelInfo> kernels;
  std::string error;
};

class KernelExecutor {
 public:
  virtual ~KernelExecutor() = default;
  virtual CompiledSource compile(const std::string& source) = 0;

  /// Runs a kernel to its end. An exception fails the command buffer with its text. Called from
  /// the threads of command buffers, several at a time if several queues are at work.
  virtual void run(const Launch& launch) = 0;
};

}  // namespace sdpa::apple_fake
