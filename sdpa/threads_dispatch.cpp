// SPDX-License-Identifier: MIT
// parallel_for over libdispatch, for a Mac without OpenMP. The functions are in libSystem; they are
// declared here because no SDK is needed for anything else.
#include <algorithm>
#include <thread>

#include "sdpa/task_loop.h"

extern "C" {
void* dispatch_get_global_queue(std::intptr_t identifier, std::uintptr_t flags);
void dispatch_apply_f(std::size_t iterations, void* queue, void* context,
                      void (*work)(void*, std::size_t));
}

namespace sdpa {
namespace {

std::atomic<int> requested_threads{0};

constexpr std::intptr_t kUserInitiated = 0x19;  // QOS_CLASS_USER_INITIATED

void run_worker(void* loop, std::size_t worker) {
  static_cast<TaskLoop*>(loop)->run(static_cast<int>(worker));
}

}  // namespace

int thread_count() {
  const int requested = requested_threads.load(std::memory_order_relaxed);
  return requested > 0 ? requested
                       : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void set_thread_count(int count) { requested_threads.store(std::max(count, 0)); }

void parallel_for(std::int64_t count, Task task, void* context) {
  const auto threads = static_cast<std::size_t>(std::min<std::int64_t>(thread_count(), count));
  TaskLoop loop{.count = count, .task = task, .context = context};
  if (threads <= 1) return run_worker(&loop, 0);
  dispatch_apply_f(threads, dispatch_get_global_queue(kUserInitiated, 0), &loop, run_worker);
}

}  // namespace sdpa
