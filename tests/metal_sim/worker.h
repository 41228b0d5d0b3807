// SPDX-License-Identifier: MIT
// Executes threadgroups, one at a time, on the thread that calls it: a fibre per lane.
//
// A phase runs every lane of one SIMD group up to its next collective. The scheduler then checks
// that all of them stopped at the same one and carries it out. SIMD groups take turns in a random
// order between barriers.
#pragma once
#include <array>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "counters.h"
#include "device_memory.h"
#include "lane.h"
#include "mapping.h"
#include "threadgroup_memory.h"

namespace sim {

/// What all threadgroups of a launch have in common.
struct Launch {
  std::string function;
  Size threadgroups, threads, group;
  GridUnit grid_unit = GridUnit::kThreadgroups;
  uint64_t seed = 0;
  uint64_t first_serial = 0;  // number of the launch's first threadgroup among all ever run
  Options::Races device_races = Options::Races::kCheck;
  Options::Races threadgroup_races = Options::Races::kCheck;
  DeviceMemory* device = nullptr;
  /// Calls the kernel for one lane.
  void (*call)(const Lane& lane, const Launch& launch) = nullptr;
  const void* kernel = nullptr;           // for `call`
  std::vector<void*> slots;               // the arguments' addresses, by parameter
  std::vector<size_t> threadgroup_bytes;  // [[threadgroup(n)]] lengths, by index
};

class Worker {
 public:
  Worker();
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void begin(const Launch& launch);
  /// Runs the threadgroup of this linear index. False: it had a fault, see fault().
  bool run_threadgroup(uint64_t index);
  void end();

  const Counters& counters() const { return counters_; }

  const std::string& fault() const { return fault_; }

  // Called by lanes.
  void stop_lane();
  void load(const void* address, size_t bytes);
  void store(const void* address, size_t bytes);
  void atomic(const void* address, size_t bytes, AtomicUse use);
  void require(bool is_so, const char* fault);
  void require_lane(int lane);

  void* threadgroup_array(const void* tag, size_t bytes, size_t align);
  void* threadgroup_argument(int index);

 private:
  static constexpr int kMaxLanes = kMaxThreads, kMaxSimdgroups = kMaxLanes / kSimdWidth;
  static constexpr int kOrders = 16;
  static constexpr size_t kStackBytes = 128 * 1024, kStackStride = kStackBytes + kPage;
  enum class State : uint8_t { kReady, kAtBarrier, kDone };
  /// The order in which a phase runs the lanes of a SIMD group, ended by kNoLane.
  using Order = std::array<uint8_t, kSimdWidth + 1>;
  static constexpr uint8_t kNoLane = 0xFF;

  static void run_lane();
  void make_fibres(int count);
  int place_threadgroup(uint64_t index);
  void shuffle_orders();
  void schedule(int simdgroups);
  bool release_barrier(int simdgroups);
  int pick(int simdgroups);
  State run_phase(int simdgroup);
  void resume_lanes(int simdgroup);
  void check_convergence(const Lane& a, const Lane& b, const char* what);
  void carry_out(const Lane* first, int count);
  void pass_barrier(uint8_t fence, int simdgroup);
  Lane* enter_next_lane();
  void set_views(int simdgroup);
  [[noreturn]] void abandon(std::string fault);
  void record(std::string fault);
  std::string place_text(const Lane& lane) const;
  std::string stray_text(const char* access, const void* address, size_t bytes) const;

  // In the running lane's stack?
  bool is_private(const void* address) const {
    return size_t(static_cast<const uint8_t*>(address) - stack_) < kStackStride;
  }

  [[noreturn]] void abandon_access(const Verdict& verdict, const void* address, size_t bytes);
  int active_lanes(int simdgroup) const;

  const Launch* launch_ = nullptr;
  std::unique_ptr<Lane[]> lanes_;
  uint8_t* stacks_;
  uint8_t* stack_ = nullptr;  // the running lane's
  int fibres_ = 0;            // how many lanes have a context
  int lane_count_ = 0;
  void* scheduler_ = nullptr;           // its context, while a lane runs
  const uint8_t* next_lane_ = nullptr;  // of the phase under way
  Lane* phase_lanes_ = nullptr;         // its SIMD group
  int phase_group_ = 0;
  int last_group_ = -1, stickiness_ = 0;
  std::array<Order, kOrders> orders_, partial_orders_;  // the latter for an incomplete SIMD group
  std::mt19937_64 random_;
  std::array<State, kMaxSimdgroups> states_;
  ThreadgroupMemory threadgroup_;
  View device_view_, threadgroup_view_;

  struct Times {
    uint64_t device = 0, threadgroup = 0;
  };

  uint64_t serial_ = 0, time_ = 0;
  Times group_times_;
  std::array<Times, kMaxSimdgroups> simdgroup_times_;
  Counters counters_;
  std::string fault_;
};

extern thread_local Worker* current_worker;

}  // namespace sim
