// SPDX-License-Identifier: MIT
// What a launch did, counted exactly. These figures stand in for a clock that we do not have.
#pragma once
#include <cstdint>

namespace sim {

struct Counters {
  // Once per SIMD group that carries the instruction out.
  uint64_t matrix_multiplies = 0;
  uint64_t matrix_loads = 0;
  uint64_t matrix_stores = 0;
  uint64_t shuffles = 0;
  uint64_t reductions = 0;
  uint64_t simdgroup_barriers = 0;
  // Once per threadgroup.
  uint64_t threadgroup_barriers = 0;
  uint64_t threadgroups = 0;
  // Once per lane.
  uint64_t exponentials = 0;
  uint64_t atomics = 0;
  // Bytes that loads and stores of all lanes name; a cache or a coalescing unit would see fewer.
  uint64_t device_bytes_read = 0;
  uint64_t device_bytes_written = 0;
  uint64_t constant_bytes_read = 0;  // through parameters in the constant address space
  uint64_t threadgroup_bytes_read = 0;
  uint64_t threadgroup_bytes_written = 0;
  // The threadgroup memory that one threadgroup occupies.
  uint64_t threadgroup_memory = 0;

  /// Adds the counts of another launch; the memory is the larger of the two.
  Counters& operator+=(const Counters& other);
  bool operator==(const Counters&) const = default;
};

}  // namespace sim
