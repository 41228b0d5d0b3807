// SPDX-License-Identifier: MIT
// Right kernels do what they say: positions, lanes, matrices, constants, counts.
#include <algorithm>
#include <array>
#include <cmath>

#include "run_kernel.h"

namespace sim {
namespace {

using Positions = std::array<unsigned, 16>;

std::vector<Positions> positions(Size grid, Size group, GridUnit unit, size_t threads) {
  std::vector<Positions> out(threads);
  expect_fault(run({.function = "note_positions",
                    .bindings = {buffer(0, out)},
                    .grid = grid,
                    .group = group,
                    .grid_unit = unit}),
               "");
  return out;
}

TEST(Execution, PositionsInWholeThreadgroups) {
  const auto out = positions({2, 3}, {16, 4}, GridUnit::kThreadgroups, 32 * 12);
  const unsigned x = 21, y = 10;  // threadgroup (1, 2), thread (5, 2), index 37
  EXPECT_EQ(out[y * 32 + x], (Positions{1, 2, 2, 3, 5, 2, 16, 4, x, y, 37, 1, 5, 2, 32, 12}));
}

TEST(Execution, ThreadgroupsAtTheEdgeAreSmaller) {
  const auto out = positions({20, 5}, {16, 4}, GridUnit::kThreads, 20 * 5);
  const unsigned x = 18, y = 4;  // threadgroup (1, 1) has 4 x 1 threads
  EXPECT_EQ(out[y * 20 + x], (Positions{1, 1, 2, 2, 2, 0, 4, 1, x, y, 2, 0, 2, 1, 20, 5}));
}

TEST(Execution, LanesExchange) {
  std::vector<float> out(32);
  std::vector<int> maxima(32);
  expect_fault(run({.function = "sum_over_lanes",
                    .bindings = {buffer(0, out), buffer(1, maxima)},
                    .group = {32}}),
               "");
  EXPECT_EQ(out[10], 496 + 11 + 9 + 55);
  EXPECT_EQ(out[31], 496 + 31 + 30 + 496);
  EXPECT_EQ(out[0], 496 + 1 + 0 + 0);
  EXPECT_EQ(maxima[0], 3100 + 0 + 10);
}

TEST(Execution, PartialSimdgroupsReduceOverTheirLanes) {
  std::vector<float> out(5);
  std::vector<int> maxima(5);
  expect_fault(run({.function = "sum_over_lanes",
                    .bindings = {buffer(0, out), buffer(1, maxima)},
                    .group = {5}}),
               "a shuffle takes from lane 5");
}

TEST(Execution, MatrixLoadsTransposedFromAnOrigin) {
  std::vector<_Float16> in(16 * 16), out(64);
  for (int i = 0; i < 256; i++) in[size_t(i)] = _Float16(i);
  expect_fault(run({.function = "transpose_matrix",
                    .bindings = {buffer(0, in), buffer(1, out)},
                    .group = {32}}),
               "");
  for (int row = 0; row < 8; row++)
    for (int column = 0; column < 8; column++)
      EXPECT_EQ(float(out[size_t(row * 8 + column)]), (2 + column) * 16 + 3 + row);
}

TEST(Execution, FunctionConstants) {
  std::vector<float> out(32);
  const auto run_with = [&out](std::vector<Constant> constants) {
    return run({.function = "scale_by_constants",
                .bindings = {buffer(0, out)},
                .constants = std::move(constants),
                .group = {32}});
  };
  const bool doubles = true;
  const float factor = 5;
  expect_fault(run_with({{7, &doubles, 1}, {8, &factor, 4}}), "");
  EXPECT_EQ(out[3], 30);
  expect_fault(run_with({{8, &factor, 4}}), "");
  EXPECT_EQ(out[3], 15);
  expect_fault(run_with({}), "");
  EXPECT_EQ(out[3], 3);
  expect_fault(run_with({{7, &factor, 4}}), "function constant 7 has 1 bytes, 4 are given");
}

TEST(Execution, ThreadgroupArgument) {
  std::vector<float> out(32);
  expect_fault(run({.function = "use_threadgroup_argument",
                    .bindings = {buffer(0, out), {Binding::Kind::kThreadgroup, 1, nullptr, 128}},
                    .group = {32}}),
               "");
  EXPECT_EQ(out[4], 27);
}

TEST(Execution, BuffersMayShareMemory) {
  std::vector<float> values(64, 1.0f);
  Binding second = buffer(1, values);
  second.data = values.data() + 32;
  second.bytes = 128;
  expect_fault(run({.function = "add_one", .bindings = {buffer(0, values), second}, .group = {32}}),
               "");
  EXPECT_EQ(values[31], 1);
  EXPECT_EQ(values[32], 2);
  expect_fault(run({.function = "add_one",
                    .bindings = {buffer(0, values), buffer(1, values)},
                    .group = {32}}),
               "");
  EXPECT_EQ(values[0], 2);
}

TEST(Execution, CountsAreExact) {
  std::vector<float> in(64, 0.01f);
  std::vector<_Float16> out(32);
  const Result result = run({.function = "known_counts",
                             .bindings = {buffer(0, in), buffer(1, out)},
                             .grid = {1},
                             .group = {32}});
  expect_fault(result, "");
  const Counters expected{.matrix_multiplies = 1,
                          .matrix_loads = 1,
                          .matrix_stores = 1,
                          .shuffles = 1,
                          .reductions = 1,
                          .simdgroup_barriers = 1,
                          .threadgroup_barriers = 2,
                          .threadgroups = 1,
                          .exponentials = 64,
                          .device_bytes_read = 256,
                          .device_bytes_written = 64,
                          .threadgroup_bytes_read = 512,
                          .threadgroup_bytes_written = 512,
                          .threadgroup_memory = 256};
  EXPECT_EQ(result.counters, expected);
}

TEST(Execution, CountsAndResultsDoNotDependOnThreads) {
  std::vector<float> one(1000), two(1000);
  const auto run_with = [](std::vector<float>& out, int threads) {
    return run({.function = "fill",
                .bindings = {buffer(0, out)},
                .grid = {1000},
                .group = {64},
                .grid_unit = GridUnit::kThreads},
               {.seed = 5, .threads = threads});
  };
  const Result first = run_with(one, 1), second = run_with(two, 3);
  expect_fault(first, "");
  expect_fault(second, "");
  EXPECT_EQ(one, two);
  EXPECT_EQ(first.counters, second.counters);
  EXPECT_EQ(first.counters.device_bytes_written, 4000u);
  EXPECT_EQ(first.counters.threadgroups, 16u);
}

TEST(Execution, AfterAFaultTheNextLaunchIsSound) {
  std::vector<float> out(64);
  for (int i = 0; i < 3; i++) {
    EXPECT_FALSE(
        run({.function = "leave_early", .bindings = {buffer(0, out)}, .group = {64}}).ok());
    EXPECT_TRUE(run({.function = "fill", .bindings = {buffer(0, out)}, .group = {64}}).ok());
    EXPECT_EQ(out[63], 63);
  }
}

TEST(Execution, KernelsDescribeThemselves) {
  const KernelInfo info = kernel_info("copy_shifted");
  ASSERT_EQ(info.arguments.size(), 4u);
  EXPECT_EQ(info.arguments[0].name, "from");
  EXPECT_TRUE(info.arguments[0].read_only);
  EXPECT_FALSE(info.arguments[1].read_only);
  EXPECT_EQ(info.arguments[3].index, 3);
  EXPECT_EQ(info.arguments[3].element_size, sizeof(int));
  const auto names = kernel_names();
  EXPECT_NE(std::find(names.begin(), names.end(), "fill"), names.end());
}

}  // namespace
}  // namespace sim
