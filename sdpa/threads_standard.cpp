// SPDX-License-Identifier: MIT
// parallel_for over std::thread, for the thread sanitizer: it sees how these threads synchronize,
// and cannot see it inside libgomp. Threads are started anew for every loop.
#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "sdpa/task_loop.h"

namespace sdpa {
namespace {

std::atomic<int> requested_threads{0};

thread_local bool is_inside_a_loop = false;

void run_worker(TaskLoop& loop, int worker) {
  const bool was_inside = std::exchange(is_inside_a_loop, true);
  loop.run(worker);
  is_inside_a_loop = was_inside;
}

}  // namespace

int thread_count() {
  if (is_inside_a_loop) return 1;
  const int requested = requested_threads.load(std::memory_order_relaxed);
  return requested > 0 ? requested
                       : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void set_thread_count(int count) { requested_threads.store(std::max(count, 0)); }

void parallel_for(std::int64_t count, Task task, void* context) {
  const std::int64_t threads = std::min<std::int64_t>(thread_count(), count);
  TaskLoop loop{.count = count, .task = task, .context = context};
  std::vector<std::thread> others;
  for (int worker = 1; worker < threads; ++worker)
    others.emplace_back([&loop, worker] { run_worker(loop, worker); });
  run_worker(loop, 0);
  for (std::thread& each : others) each.join();
}

}  // namespace sdpa
