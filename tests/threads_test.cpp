// SPDX-License-Identifier: MIT
#include "sdpa/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

namespace sdpa {
namespace {

class Threads : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_thread_count(GetParam()); }

  void TearDown() override { set_thread_count(0); }
};

TEST_P(Threads, EveryTaskRunsOnce) {
  for (std::int64_t count : {0, 1, 2, 3, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
    parallel_for(count, [&](std::int64_t task, int) { ++runs[static_cast<std::size_t>(task)]; });
    for (const auto& each : runs) EXPECT_EQ(each, 1);
  }
}

TEST_P(Threads, WorkersAreNumberedBelowTheThreadCount) {
  std::atomic<int> largest{0};
  parallel_for(200, [&](std::int64_t, int worker) {
    EXPECT_GE(worker, 0);
    int seen = largest;
    while (worker > seen && !largest.compare_exchange_weak(seen, worker)) {
    }
  });
  EXPECT_LT(largest, thread_count());
}

TEST_P(Threads, AWorkerRunsOneTaskAtATime) {
  std::vector<std::atomic<int>> busy(static_cast<std::size_t>(thread_count()));
  parallel_for(500, [&](std::int64_t, int worker) {
    EXPECT_EQ(busy[static_cast<std::size_t>(worker)]++, 0);
    std::this_thread::yield();
    --busy[static_cast<std::size_t>(worker)];
  });
}

TEST_P(Threads, ALoopInsideALoopRunsToo) {
  std::atomic<int> runs{0};
  parallel_for(5, [&](std::int64_t, int) { parallel_for(7, [&](std::int64_t, int) { ++runs; }); });
  EXPECT_EQ(runs, 35);
}

INSTANTIATE_TEST_SUITE_P(Counts, Threads, testing::Values(1, 2, 5));

TEST(ThreadCount, IsWhatWasAskedFor) {
  set_thread_count(3);
  EXPECT_EQ(thread_count(), 3);
  set_thread_count(0);
  EXPECT_GE(thread_count(), 1);
  set_thread_count(-4);
  EXPECT_GE(thread_count(), 1) << "a negative number asks for the pool's own";
  set_thread_count(0);
}

TEST(ParallelFor, SeveralCallersAtOnce) {
  std::atomic<int> runs{0};
  std::vector<std::thread> callers;
  for (int n = 0; n < 4; ++n)
    callers.emplace_back([&] { parallel_for(50, [&](std::int64_t, int) { ++runs; }); });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(runs, 200);
}

}  // namespace
}  // namespace sdpa
