// SPDX-License-Identifier: MIT
// What the shim of metal_stdlib sees of the executor: the lane that is running, and collectives.
//
// A lane is a fibre. It runs until it reaches a collective (a barrier, a shuffle, a matrix
// multiplication, ...) or its end. When all lanes of its SIMD group have stopped at the same one,
// the executor carries it out and lets them go on.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>

#include "counters.h"
#include "sim.h"

namespace sim {

constexpr int kSimdWidth = 32;
using Site = std::source_location;

enum class Stop : uint8_t {
  kStart,
  kEnd,
  kMatrixMultiply,
  kMatrixLoad,
  kMatrixStore,
  kShuffle,
  kReduction,
  kSimdgroupBarrier,
  kThreadgroupBarrier,
};

/// Which memory a barrier orders; bits of MSL's mem_flags.
enum Fence : uint8_t { kFenceNone = 0, kFenceDevice = 1, kFenceThreadgroup = 2 };

/// Carries out a collective. `arguments[i]` is what lane i handed over, null if it is not there.
using Apply = void (*)(void* const* arguments);

struct Lane {
  Size threadgroup;        // threadgroup_position_in_grid
  Size threadgroups;       // threadgroups_per_grid
  Size thread;             // thread_position_in_threadgroup
  Size group;              // threads_per_threadgroup, at the grid's edge perhaps fewer
  Size dispatched_group;   // dispatch_threads_per_threadgroup
  Size threads;            // threads_per_grid
  unsigned index = 0;      // thread_index_in_threadgroup
  unsigned simdgroup = 0;  // simdgroup_index_in_threadgroup
  unsigned lane = 0;       // thread_index_in_simdgroup
  unsigned simdgroups = 0;

  // Where the lane stopped.
  Stop stop = Stop::kStart;
  uint8_t fence = kFenceNone;
  Site site;
  void* argument = nullptr;
  Apply apply = nullptr;

  void* context = nullptr;  // the suspended fibre
};

extern thread_local Lane* current_lane;
extern thread_local Counters* current_counters;

/// Stops the running lane at a collective and returns when it has been carried out.
void collective(Stop stop, Site site, void* argument, Apply apply, uint8_t fence = kFenceNone);

/// A fault of the running lane, unless this is so.
void require(bool is_so, const char* fault);

/// Faults unless the running lane's SIMD group has this lane.
void require_lane(int lane);

inline __attribute__((no_sanitize("thread"))) void count_exponential() {
  if (current_counters) current_counters->exponentials++;
}

/// The storage of a threadgroup variable: one per declaration (`tag`) and threadgroup.
void* threadgroup_array(const void* tag, size_t bytes, size_t align);

/// Has the dispatch given this function constant a value?
bool is_constant_defined(const void* variable);

/// Checks of an access by kernel code; called by instrumented code. Does nothing outside a kernel.
void check_load(const void* address, size_t bytes);
void check_store(const void* address, size_t bytes);
/// The same of an atomic operation.
enum class AtomicUse { kLoad, kStore, kChange };
void check_atomic(const void* address, size_t bytes, AtomicUse use);

}  // namespace sim
