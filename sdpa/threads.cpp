// SPDX-License-Identifier: MIT
// parallel_for over OpenMP. A module linked with plain -fopenmp shares torch's libgomp and its
// pool.
#include "sdpa/threads.h"

#include <omp.h>

#include <algorithm>
#include <atomic>

namespace sdpa {
namespace {

std::atomic<int> requested_threads{0};

}  // namespace

int thread_count() {
  if (omp_in_parallel()) return 1;
  const int requested = requested_threads.load(std::memory_order_relaxed);
  return requested > 0 ? requested : omp_get_max_threads();
}

void set_thread_count(int count) { requested_threads.store(std::max(count, 0)); }

void parallel_for(std::int64_t count, Task task, void* context) {
  const int threads = static_cast<int>(std::min<std::int64_t>(thread_count(), count));
  if (threads <= 1) {
    for (std::int64_t i = 0; i < count; ++i) task(context, i, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (std::int64_t i = 0; i < count; ++i) task(context, i, omp_get_thread_num());
}

}  // namespace sdpa
