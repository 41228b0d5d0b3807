// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>

#include "sdpa/threads.h"

namespace sdpa {

/// One parallel_for under way: every worker takes the next task until none is left.
struct TaskLoop {
  std::int64_t count;
  Task task;
  void* context;
  std::atomic<std::int64_t> next{0};

  void run(int worker) {
    for (std::int64_t i = next++; i < count; i = next++) task(context, i, worker);
  }
};

}  // namespace sdpa
