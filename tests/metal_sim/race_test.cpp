// SPDX-License-Identifier: MIT
// Races between lanes, SIMD groups and threadgroups, and what barriers order.
#include "run_kernel.h"

namespace sim {
namespace {

Result run_on_floats(const std::string& function, unsigned group = 64,
                     const Options& options = {}) {
  std::vector<float> out(1024), scratch(1024);
  std::vector<Binding> bindings = {buffer(0, out)};
  if (kernel_info(function).arguments.size() > 1) bindings.push_back(buffer(1, scratch));
  return run({.function = function, .bindings = bindings, .group = {group}}, options);
}

TEST(ThreadgroupRaces, ABarrierOrdersOnlyWhatItsFlagsName) {
  expect_fault(run_on_floats("exchange_in_threadgroup_threadgroup"), "");
  expect_fault(run_on_floats("exchange_in_threadgroup_none"),
               "race: read after write without a barrier");
  expect_fault(run_on_floats("exchange_in_threadgroup_device"),
               "race: read after write without a barrier");
}

TEST(ThreadgroupRaces, LanesOfOneSimdgroupRaceToo) {
  expect_fault(run_on_floats("exchange_in_simdgroup_threadgroup"), "");
  expect_fault(run_on_floats("exchange_in_simdgroup_none"),
               "race: read after write without a barrier");
}

TEST(ThreadgroupRaces, SimdgroupBarrierDoesNotOrderOtherGroups) {
  expect_fault(run_on_floats("read_behind_simdgroup_barrier", 32), "");
  expect_fault(run_on_floats("read_behind_simdgroup_barrier", 64), "race: read after write");
}

TEST(ThreadgroupRaces, WriteAfterWrite) {
  expect_fault(run_on_floats("write_twice_in_threadgroup", 32), "race: write after write");
  expect_fault(run_on_floats("write_twice_in_threadgroup", 1), "");
}

TEST(ThreadgroupRaces, WriteAfterRead) {
  expect_fault(run_on_floats("write_after_read_in_threadgroup"), "race: write after read");
  expect_fault(run_on_floats("write_after_read_in_threadgroup", 32), "");
}

TEST(ThreadgroupRaces, WriteAfterReadByAnotherSimdgroup) {
  for (uint64_t seed = 0; seed < 8; seed++) {
    const Result result = run_on_floats("write_after_read_elsewhere", 64, {.seed = seed});
    ASSERT_FALSE(result.ok()) << "seed " << seed;
    EXPECT_NE(result.faults[0].find("race"), std::string::npos);
  }
}

TEST(ThreadgroupRaces, NeighbouringHalvesDoNotRace) {
  std::vector<uint16_t> out(1024);
  expect_fault(
      run({.function = "write_neighbouring_halves", .bindings = {buffer(0, out)}, .group = {1024}}),
      "");
}

TEST(ThreadgroupRaces, CanBeIgnored) {
  expect_fault(run_on_floats("exchange_in_threadgroup_none", 64,
                             {.threadgroup_races = Options::Races::kIgnore}),
               "");
}

TEST(DeviceRaces, WithinAThreadgroup) {
  expect_fault(run_on_floats("exchange_in_device_device"), "");
  expect_fault(run_on_floats("exchange_in_device_threadgroup"),
               "race: read after write without a barrier (4 bytes) in device memory");
}

TEST(DeviceRaces, NeighbouringBytesDoNotRace) {
  std::vector<uint8_t> out(1000);
  expect_fault(run({.function = "write_neighbouring_bytes",
                    .bindings = {buffer(0, out)},
                    .grid = {1000},
                    .group = {33},
                    .grid_unit = GridUnit::kThreads}),
               "");
}

Result run_groups(const std::string& function, unsigned groups, int threads) {
  std::vector<float> out(64);
  return run({.function = function, .bindings = {buffer(0, out)}, .grid = {groups}, .group = {64}},
             {.threads = threads});
}

TEST(DeviceRaces, BetweenThreadgroups) {
  for (int threads : {1, 2}) {
    expect_fault(run_groups("threadgroups_write_one_place", 1, threads), "");
    expect_fault(run_groups("threadgroups_write_one_place", 2, threads),
                 "race: write after write without a barrier (4 bytes) in device memory");
    const Result result = run_groups("threadgroups_read_each_other", 64, threads);
    ASSERT_FALSE(result.ok());
    EXPECT_NE(result.faults[0].find("against another threadgroup"), std::string::npos)
        << result.faults[0];
  }
}

TEST(DeviceRaces, LaunchesAreOrdered) {
  std::vector<float> values(64, 0);
  for (int i = 0; i < 3; i++)
    expect_fault(
        run({.function = "increment", .bindings = {buffer(0, values)}, .grid = {2}, .group = {32}}),
        "");
  EXPECT_EQ(values[63], 3);
}

TEST(Orders, ShufflingShowsAMissingBarrier) {
  // The reader comes after the writer in order, and sees what it wrote. Shuffled, it may come first
  // and finds memory that was never written.
  const auto run_with = [](uint64_t seed) {
    return run_on_floats("read_behind_simdgroup_barrier", 64,
                         {.seed = seed, .threadgroup_races = Options::Races::kIgnore});
  };
  int noticed = 0;
  for (uint64_t seed = 1; seed <= 20; seed++) noticed += !run_with(seed).ok();
  EXPECT_GT(noticed, 0);
}

}  // namespace
}  // namespace sim
