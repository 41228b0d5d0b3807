// SPDX-License-Identifier: MIT
// Atomic operations: what they compute, and what they race with.
#include "run_kernel.h"

namespace sim {
namespace {

TEST(Atomic, SumsOverManyThreadgroupsAndThreads) {
  std::vector<uint32_t> total{0};
  std::vector<float> sum{0};
  std::vector<int32_t> largest{-5};
  const Result result = run({.function = "count_threads",
                             .bindings = {buffer(0, total), buffer(1, sum), buffer(2, largest)},
                             .grid = {50},
                             .group = {64}},
                            {.seed = 3, .threads = 2});
  expect_none(result.faults);
  EXPECT_EQ(total[0], 50u * 64);
  EXPECT_EQ(sum[0], 50 * 64 / 2.0f);
  EXPECT_EQ(largest[0], 50 * 64 - 1);
  EXPECT_EQ(result.counters.atomics, 3u * 50 * 64);
  EXPECT_EQ(result.counters.device_bytes_written, 3u * 50 * 64 * 4);
}

TEST(Atomic, EveryOperation) {
  std::vector<uint32_t> values(32), out(32);
  const Result result = run({.function = "exchange_atomics",
                             .bindings = {buffer(0, values), buffer(1, out)},
                             .group = {32}});
  expect_none(result.faults);
  // 12 - 2 = 10, | 5 = 15, & 7 = 7, ^ 1 = 6; 5 is not there, 6 is and becomes 8, then 3.
  EXPECT_EQ(out[7], 8u * 100 + 6 * 10 + 1 + 3 * 1000);
}

Result mix_with_plain(int reads_plainly) {
  std::vector<uint32_t> total{0}, out(64);
  return run({.function = "mix_with_plain",
              .bindings = {buffer(0, total), buffer(1, out), bytes(2, reads_plainly)},
              .group = {64}});
}

TEST(Atomic, RacesWithPlainAccess) {
  expect_fault(mix_with_plain(0), "");
  expect_fault(mix_with_plain(1), "race: read after write");
}

Result count_in_threadgroup(int has_barrier, uint64_t seed, std::vector<uint32_t>& out) {
  return run({.function = "count_in_threadgroup",
              .bindings = {buffer(0, out), bytes(1, has_barrier)},
              .group = {96}},
             {.seed = seed});
}

TEST(Atomic, InThreadgroupMemory) {
  std::vector<uint32_t> out(1);
  expect_fault(count_in_threadgroup(1, 0, out), "");
  EXPECT_EQ(out[0], 96u);
  for (uint64_t seed : {0, 1, 2}) expect_fault(count_in_threadgroup(0, seed, out), "race: ");
}

TEST(Atomic, StaysInBounds) {
  std::vector<uint32_t> total(31);
  expect_fault(run({.function = "add_past_the_end", .bindings = {buffer(0, total)}, .group = {32}}),
               "access outside any buffer (4 bytes)");
}

}  // namespace
}  // namespace sim
