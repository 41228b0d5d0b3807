// SPDX-License-Identifier: MIT
// The simulator's public interface: run a kernel by name over some buffers, get counts and faults.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "counters.h"

namespace sim {

struct Size {
  unsigned x = 1, y = 1, z = 1;
  bool operator==(const Size&) const = default;
};

/// One entry of the argument table, as setBuffer or setBytes would fill it.
struct Binding {
  enum class Kind {
    kBuffer,       // setBuffer: read and written in place
    kBytes,        // setBytes: copied at the call, at most 4096 bytes
    kThreadgroup,  // setThreadgroupMemoryLength: only `bytes` counts
  };
  Kind kind = Kind::kBuffer;
  int index = 0;
  void* data = nullptr;
  size_t bytes = 0;
  /// One flag per byte: has anything been written there? Kept by the caller from launch to launch.
  /// Null: all of it counts as written.
  uint8_t* written = nullptr;
};

/// The value of one function constant, by its index.
struct Constant {
  int index = 0;
  const void* data = nullptr;
  size_t bytes = 0;
};

/// How large a grid is, in one of Metal's two ways.
enum class GridUnit {
  kThreadgroups,  // dispatchThreadgroups
  kThreads,       // dispatchThreads: threadgroups at the edges may be smaller
};

struct Dispatch {
  std::string function = {};  // the host name
  std::vector<Binding> bindings = {};
  std::vector<Constant> constants = {};
  Size grid = {};
  Size group = {};  // threads per threadgroup
  GridUnit grid_unit = GridUnit::kThreadgroups;
};

struct Options {
  /// 0: lanes and SIMD groups run in order. Otherwise both are shuffled, the same way for the same
  /// seed and number of threads.
  uint64_t seed = 0;
  /// Threadgroups run at once; 0: as many as the machine has cores.
  int threads = 0;
  enum class Races { kCheck, kIgnore };
  Races threadgroup_races = Races::kCheck;
  Races device_races = Races::kCheck;
};

struct Result {
  Counters counters;
  /// One sentence per fault. A threadgroup stops at its first; the launch ends soon after.
  std::vector<std::string> faults;

  bool ok() const { return faults.empty(); }
};

/// Runs one dispatch to its end. Launches are serialised: one at a time in a process.
Result run(const Dispatch& dispatch, const Options& options = {});

/// What the host can ask about one argument of a kernel.
struct ArgumentInfo {
  Binding::Kind kind = Binding::Kind::kBuffer;
  int index = 0;
  std::string name;
  bool read_only = false;    // declared const or constant
  bool is_constant = false;  // in the constant address space
  size_t element_size = 0;   // of what the pointer or reference names
};

struct KernelInfo {
  std::string name;
  std::vector<ArgumentInfo> arguments;  // those that the host binds
  int max_threads = 1024;               // [[max_total_threads_per_threadgroup]]
};

/// The kernels that are linked in, sorted by name.
std::vector<std::string> kernel_names();
/// Describes a kernel; its name is empty if there is none.
KernelInfo kernel_info(const std::string& name);

constexpr int kMaxBuffers = 31;
constexpr int kMaxThreads = 1024;
constexpr size_t kMaxInlineBytes = 4096;
constexpr size_t kMaxThreadgroupMemory = 32 * 1024;

}  // namespace sim
