// SPDX-License-Identifier: MIT
#include "worker.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "fibre.h"
#include "mapping.h"
#include "static_data.h"

namespace sim {

thread_local Lane* current_lane = nullptr;
thread_local Counters* current_counters = nullptr;
thread_local Worker* current_worker = nullptr;

namespace {

// The tops of all stacks would otherwise share one set of the first-level cache.
constexpr size_t kStagger = 128;

Size unflatten(uint64_t index, const Size& size) {
  return {unsigned(index % size.x), unsigned(index / size.x % size.y),
          unsigned(index / size.x / size.y)};
}

unsigned volume(const Size& size) { return size.x * size.y * size.z; }

// The part of the last threadgroup that lies inside a grid of `threads`.
unsigned clip(unsigned group, unsigned position, unsigned threads) {
  return std::min(group, threads - group * position);
}

const char* stop_name(Stop stop) {
  switch (stop) {
    case Stop::kStart:
      return "the start of the kernel";
    case Stop::kEnd:
      return "the end of the kernel";
    case Stop::kMatrixMultiply:
      return "simdgroup_multiply_accumulate";
    case Stop::kMatrixLoad:
      return "simdgroup_load";
    case Stop::kMatrixStore:
      return "simdgroup_store";
    case Stop::kShuffle:
      return "a SIMD shuffle";
    case Stop::kReduction:
      return "a SIMD reduction";
    case Stop::kSimdgroupBarrier:
      return "simdgroup_barrier";
    case Stop::kThreadgroupBarrier:
      return "threadgroup_barrier";
  }
  return "";
}

std::string site_text(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

std::string stop_text(const Lane& lane) {
  if (lane.stop <= Stop::kEnd) return stop_name(lane.stop);
  return std::string(stop_name(lane.stop)) + " (" + site_text(lane.site) + ")";
}

bool same_site(const Site& a, const Site& b) {
  // Mostly both refer to the same static description.
  if (std::bit_cast<uintptr_t>(a) == std::bit_cast<uintptr_t>(b)) return true;
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || !strcmp(a.file_name(), b.file_name()));
}

bool same_stop(const Lane& a, const Lane& b) {
  return a.stop == b.stop && (a.stop == Stop::kEnd || same_site(a.site, b.site));
}

std::string lane_text(const Lane& lane) {
  return "SIMD group " + std::to_string(lane.simdgroup) + " lane " + std::to_string(lane.lane);
}

}  // namespace

Worker::Worker()
    : lanes_(std::make_unique<Lane[]>(kMaxLanes)), stacks_(map_memory(kMaxLanes * kStackStride)) {
  for (int i = 0; i < kMaxLanes; i++) protect_page(stacks_ + i * kStackStride);
}

Worker::~Worker() { unmap_memory(stacks_, kMaxLanes * kStackStride); }

void Worker::make_fibres(int count) {
  for (; fibres_ < count; fibres_++) {
    const size_t stagger = size_t(fibres_ % kSimdWidth) * kStagger;
    uint8_t* top = stacks_ + (fibres_ + 1) * kStackStride - stagger;
    lanes_[fibres_].context = make_fibre(top, kStackBytes - stagger, run_lane);
  }
}

// A fibre runs one lane after another, threadgroup after threadgroup.
void Worker::run_lane() {
  for (;;) {
    Worker* worker = current_worker;
    Lane* lane = current_lane;
    worker->launch_->call(*lane, *worker->launch_);
    lane->stop = Stop::kEnd;
    worker->stop_lane();
  }
}

void Worker::begin(const Launch& launch) {
  launch_ = &launch;
  counters_ = {};
  fault_.clear();
  threadgroup_.clear();
  make_fibres(int(volume(launch.group) + kSimdWidth - 1) / kSimdWidth * kSimdWidth);
}

void Worker::end() { counters_.threadgroup_memory = threadgroup_.used_bytes(); }

bool Worker::run_threadgroup(uint64_t index) {
  random_.seed(launch_->seed * 0x9E3779B97F4A7C15u + index);
  stickiness_ = int(random_() % 8);
  threadgroup_.poison();
  serial_ = launch_->first_serial + index;
  time_ = 1;
  group_times_ = {};
  simdgroup_times_ = {};
  const int simdgroups = place_threadgroup(index);
  shuffle_orders();
  current_worker = this;
  current_counters = &counters_;
  schedule(simdgroups);
  current_worker = nullptr;
  current_counters = nullptr;
  current_lane = nullptr;
  if (!fault_.empty()) fibres_ = 0;  // some are stuck in the middle
  counters_.threadgroups++;
  return fault_.empty();
}

int Worker::place_threadgroup(uint64_t index) {
  const Size position = unflatten(index, launch_->threadgroups);
  Size group = launch_->group;
  if (launch_->grid_unit == GridUnit::kThreads)
    group = {clip(group.x, position.x, launch_->threads.x),
             clip(group.y, position.y, launch_->threads.y),
             clip(group.z, position.z, launch_->threads.z)};
  lane_count_ = int(volume(group));
  const int simdgroups = (lane_count_ + kSimdWidth - 1) / kSimdWidth;
  for (int i = 0; i < lane_count_; i++) {
    Lane& lane = lanes_[i];
    lane.threadgroup = position;
    lane.threadgroups = launch_->threadgroups;
    lane.thread = unflatten(unsigned(i), group);
    lane.group = group;
    lane.dispatched_group = launch_->group;
    lane.threads = launch_->threads;
    lane.index = unsigned(i);
    lane.simdgroup = unsigned(i) / kSimdWidth;
    lane.lane = unsigned(i) % kSimdWidth;
    lane.simdgroups = unsigned(simdgroups);
    lane.stop = Stop::kStart;
  }
  return simdgroups;
}

void Worker::shuffle_orders() {
  const int partial = lane_count_ % kSimdWidth;
  for (int i = 0; i < kOrders; i++) {
    Order& order = orders_[i];
    for (int lane = 0; lane < kSimdWidth; lane++) order[lane] = uint8_t(lane);
    if (launch_->seed) std::shuffle(order.begin(), order.end() - 1, random_);
    order[kSimdWidth] = kNoLane;
    std::copy_if(order.begin(), order.end(), partial_orders_[i].begin(),
                 [partial](uint8_t lane) { return lane < partial || lane == kNoLane; });
  }
}

int Worker::active_lanes(int simdgroup) const {
  return std::min(kSimdWidth, lane_count_ - simdgroup * kSimdWidth);
}

void Worker::schedule(int simdgroups) {
  std::fill_n(states_.begin(), simdgroups, State::kReady);
  last_group_ = -1;
  while (fault_.empty()) {
    const int next = pick(simdgroups);
    if (next >= 0)
      states_[next] = run_phase(next);
    else if (!release_barrier(simdgroups))
      return;
  }
}

// The next SIMD group to run, -1 if all wait. With a seed: at random, but a group that just ran may
// go on with a likelihood of its own per threadgroup, so that some orders let groups run far ahead.
int Worker::pick(int simdgroups) {
  std::array<int, kMaxSimdgroups> ready;
  int count = 0;
  for (int g = 0; g < simdgroups; g++)
    if (states_[g] == State::kReady) ready[count++] = g;
  if (!count) return -1;
  if (!launch_->seed) return ready[0];
  const bool can_go_on = last_group_ >= 0 && states_[last_group_] == State::kReady;
  if (!can_go_on || int(random_() % 8) >= stickiness_)
    last_group_ = ready[random_() % unsigned(count)];
  return last_group_;
}

// All SIMD groups wait at the barrier, or have ended. False: all have ended.
bool Worker::release_barrier(int simdgroups) {
  int waiting = -1;
  for (int g = 0; g < simdgroups; g++)
    if (states_[g] == State::kAtBarrier) waiting = g;
  if (waiting < 0) return false;
  const Lane& first = lanes_[waiting * kSimdWidth];
  for (int g = 0; g < simdgroups; g++)
    check_convergence(first, lanes_[g * kSimdWidth], "divergence in the threadgroup");
  counters_.threadgroup_barriers++;
  pass_barrier(first.fence, -1);
  std::fill_n(states_.begin(), simdgroups, State::kReady);
  return true;
}

// Orders what the threadgroup, or the one SIMD group, did before.
void Worker::pass_barrier(uint8_t fence, int simdgroup) {
  if (fence == kFenceNone) return;
  time_++;
  Times& times = simdgroup < 0 ? group_times_ : simdgroup_times_[simdgroup];
  if (fence & kFenceDevice) times.device = time_;
  if (fence & kFenceThreadgroup) times.threadgroup = time_;
}

void Worker::set_views(int simdgroup) {
  const Times& own = simdgroup_times_[simdgroup];
  const Stamp me = make_stamp(serial_, time_, 0);
  device_view_ = {me, launch_->first_serial, group_times_.device, own.device};
  threadgroup_view_ = {me, serial_, group_times_.threadgroup, own.threadgroup};
}

// Makes the next lane of the phase the running one; null if there is none.
Lane* Worker::enter_next_lane() {
  if (*next_lane_ == kNoLane) return nullptr;
  current_lane = &phase_lanes_[*next_lane_++];
  device_view_.me = (device_view_.me & ~kLaneMask) | current_lane->index;
  threadgroup_view_.me = device_view_.me;
  stack_ = stacks_ + current_lane->index * kStackStride;
  return current_lane;
}

Worker::State Worker::run_phase(int simdgroup) {
  resume_lanes(simdgroup);
  if (!fault_.empty()) return State::kDone;
  const Lane* first = &lanes_[simdgroup * kSimdWidth];
  const int count = active_lanes(simdgroup);
  for (int i = 1; i < count; i++) check_convergence(first[0], first[i], "divergence");
  if (!fault_.empty() || first->stop == Stop::kEnd) return State::kDone;
  if (first->stop == Stop::kThreadgroupBarrier) return State::kAtBarrier;
  carry_out(first, count);
  return State::kReady;
}

void Worker::resume_lanes(int simdgroup) {
  const bool is_whole = active_lanes(simdgroup) == kSimdWidth;
  const size_t order = launch_->seed ? random_() % kOrders : 0;
  phase_group_ = simdgroup;
  phase_lanes_ = &lanes_[simdgroup * kSimdWidth];
  next_lane_ = (is_whole ? orders_ : partial_orders_)[order].data();
  set_views(simdgroup);
  switch_fibre(&scheduler_, enter_next_lane()->context);
}

// Hands over from the running lane to the next one of the phase, or back to the scheduler.
void Worker::stop_lane() {
  Lane* self = current_lane;
  const Lane* next = enter_next_lane();
  switch_fibre(&self->context, next ? next->context : scheduler_);
}

void Worker::carry_out(const Lane* first, int count) {
  switch (first->stop) {
    case Stop::kSimdgroupBarrier:
      counters_.simdgroup_barriers++;
      return pass_barrier(first->fence, int(first->simdgroup));
    case Stop::kMatrixMultiply:
      counters_.matrix_multiplies++;
      break;
    case Stop::kMatrixLoad:
      counters_.matrix_loads++;
      break;
    case Stop::kMatrixStore:
      counters_.matrix_stores++;
      break;
    case Stop::kShuffle:
      counters_.shuffles++;
      break;
    default:
      counters_.reductions++;
  }
  if (first->stop == Stop::kMatrixMultiply && count < kSimdWidth)
    return record("a matrix multiplication in a SIMD group of " + std::to_string(count) + " lanes" +
                  place_text(*first));
  void* arguments[kSimdWidth] = {};
  for (int i = 0; i < count; i++) arguments[i] = first[i].argument;
  first->apply(arguments);
}

void Worker::check_convergence(const Lane& a, const Lane& b, const char* what) {
  if (!same_stop(a, b))
    record(std::string(what) + ": " + lane_text(a) + " is at " + stop_text(a) + ", " +
           lane_text(b) + " at " + stop_text(b) + place_text(a));
}

std::string Worker::place_text(const Lane& lane) const {
  const Size& at = lane.threadgroup;
  return ", in threadgroup (" + std::to_string(at.x) + "," + std::to_string(at.y) + "," +
         std::to_string(at.z) + ") of " + launch_->function;
}

void Worker::record(std::string fault) {
  if (fault_.empty()) fault_ = std::move(fault);
}

// Leaves the running lane for good: what it was about to do must not happen.
void Worker::abandon(std::string fault) {
  const Lane& lane = *current_lane;
  record(std::move(fault) + ", by " + lane_text(lane) + ", after " + stop_text(lane) +
         place_text(lane));
  switch_fibre(&current_lane->context, scheduler_);
  __builtin_unreachable();
}

inline void Worker::load(const void* address, size_t bytes) {
  if (is_private(address)) return;
  Verdict verdict;
  if (threadgroup_.contains(address)) {
    counters_.threadgroup_bytes_read += bytes;
    verdict = threadgroup_.load(address, bytes, threadgroup_view_, launch_->threadgroup_races);
  } else if (launch_->device->contains(address)) {
    verdict = launch_->device->load(address, bytes, device_view_, launch_->device_races, counters_);
  } else if (!is_static_data(address)) {
    abandon(stray_text("load", address, bytes));
  }
  if (!verdict.is_fine()) abandon_access(verdict, address, bytes);
}

inline void Worker::store(const void* address, size_t bytes) {
  if (is_private(address)) return;
  Verdict verdict;
  if (threadgroup_.contains(address)) {
    counters_.threadgroup_bytes_written += bytes;
    verdict = threadgroup_.store(address, bytes, threadgroup_view_, launch_->threadgroup_races);
  } else if (launch_->device->contains(address)) {
    verdict =
        launch_->device->store(address, bytes, device_view_, launch_->device_races, counters_);
  } else {
    abandon(stray_text("store", address, bytes));
  }
  if (!verdict.is_fine()) abandon_access(verdict, address, bytes);
}

// Other atomic operations are no race.
void Worker::atomic(const void* address, size_t bytes, AtomicUse use) {
  counters_.atomics++;
  const View views[] = {device_view_, threadgroup_view_};
  device_view_ = device_view_.as_atomic();
  threadgroup_view_ = threadgroup_view_.as_atomic();
  if (use != AtomicUse::kStore) load(address, bytes);
  if (use != AtomicUse::kLoad) store(address, bytes);
  device_view_ = views[0];
  threadgroup_view_ = views[1];
}

void Worker::abandon_access(const Verdict& verdict, const void* address, size_t bytes) {
  const std::string text = threadgroup_.contains(address)
                               ? threadgroup_.describe(verdict.problem, address, bytes)
                               : launch_->device->describe(verdict.problem, address, bytes);
  abandon(text + past_text(verdict, device_view_.me));
}

// A pointer that leads neither to a buffer, nor to threadgroup, private or constant memory.
std::string Worker::stray_text(const char* access, const void* address, size_t bytes) const {
  const std::string text = std::string(access) + " of " + std::to_string(bytes) + " bytes ";
  const auto at = size_t(static_cast<const uint8_t*>(address) - stacks_);
  if (at < kMaxLanes * kStackStride) return text + "in the private memory of another thread";
  if (is_static_data(address)) return text + "to a program-scope variable";
  return text + "outside every kind of memory";
}

void Worker::require(bool is_so, const char* fault) {
  if (!is_so) abandon(fault);
}

void Worker::require_lane(int lane) {
  if (lane < 0 || lane >= active_lanes(phase_group_))
    abandon("a shuffle takes from lane " + std::to_string(lane) + ", which is not there");
}

void* Worker::threadgroup_array(const void* tag, size_t bytes, size_t align) {
  void* place = threadgroup_.array(tag, bytes, align);
  if (!place)
    abandon("more than " + std::to_string(kMaxThreadgroupMemory) +
            " bytes of threadgroup memory (" + std::to_string(threadgroup_.used_bytes()) + ")");
  return place;
}

void* Worker::threadgroup_argument(int index) {
  const size_t bytes = launch_->threadgroup_bytes[size_t(index)];
  return threadgroup_array(&launch_->threadgroup_bytes[size_t(index)], bytes, 16);
}

void collective(Stop stop, Site site, void* argument, Apply apply, uint8_t fence) {
  Lane* lane = current_lane;
  lane->stop = stop;
  lane->site = site;
  lane->argument = argument;
  lane->apply = apply;
  lane->fence = fence;
  current_worker->stop_lane();
}

void require_lane(int lane) { current_worker->require_lane(lane); }

void require(bool is_so, const char* fault) { current_worker->require(is_so, fault); }

void* threadgroup_array(const void* tag, size_t bytes, size_t align) {
  return current_worker->threadgroup_array(tag, bytes, align);
}

void check_load(const void* address, size_t bytes) {
  if (current_worker) current_worker->load(address, bytes);
}

void check_store(const void* address, size_t bytes) {
  if (current_worker) current_worker->store(address, bytes);
}

void check_atomic(const void* address, size_t bytes, AtomicUse use) {
  current_worker->atomic(address, bytes, use);
}

}  // namespace sim
