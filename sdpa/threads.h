// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <type_traits>

namespace sdpa {

/// How many threads a parallel_for may use: what set_thread_count said, else the pool's own number;
/// 1 inside a loop's task, where loops run in the calling thread.
int thread_count();

/// 0 returns to the pool's own number, which is torch's inside a torch process.
void set_thread_count(int count);

using Task = void (*)(void* context, std::int64_t task, int worker);

/// Calls `task(context, i, worker)` for every i in [0, count), each exactly once, on the shared
/// pool; `worker` < thread_count() names the calling thread. Tasks are handed out in order, one at
/// a time. A task must not throw.
void parallel_for(std::int64_t count, Task task, void* context);

template <typename Function>
void parallel_for(std::int64_t count, Function&& function) {
  parallel_for(
      count,
      [](void* context, std::int64_t task, int worker) {
        (*static_cast<std::remove_reference_t<Function>*>(context))(task, worker);
      },
      const_cast<void*>(static_cast<const void*>(&function)));
}

}  // namespace sdpa
