// SPDX-License-Identifier: MIT
// Collectives beyond sums and shuffles: matrix loads, votes, quads. And swizzles.
#include "run_kernel.h"

namespace sim {
namespace {

Result load_two_matrices(int apart) {
  std::vector<float> in(128, 1.0f), out(32);
  return run({.function = "load_two_matrices",
              .bindings = {buffer(0, in), buffer(1, out), bytes(2, apart)},
              .group = {32}});
}

TEST(MatrixAccess, AllLanesAskForOneMatrix) {
  expect_fault(load_two_matrices(0), "");
  expect_fault(load_two_matrices(64),
               "a matrix that is another than that of the SIMD group's first lane, by SIMD group 0 "
               "lane 16, after simdgroup_load (collective_kernels.h:");
}

Result store_two_shapes(int apart) {
  std::vector<float> out(128);
  return run({.function = "store_two_shapes",
              .bindings = {buffer(0, out), bytes(1, apart)},
              .group = {32}});
}

TEST(MatrixAccess, AllLanesAgreeOnItsShape) {
  expect_fault(store_two_shapes(0), "");
  expect_fault(store_two_shapes(1), "a matrix that is another than that");
}

Result store_then_load(int in_order, std::vector<float>& out) {
  return run({.function = "store_then_load",
              .bindings = {buffer(0, out), bytes(1, in_order)},
              .group = {32}});
}

TEST(MatrixAccess, MeetsWithoutOrderingMemory) {
  std::vector<float> out(32);
  const Result result = store_then_load(1, out);
  expect_fault(result, "");
  EXPECT_EQ(result.counters.matrix_loads, 1u);
  EXPECT_EQ(result.counters.matrix_stores, 1u);
  expect_fault(store_then_load(0, out), "race: read after write");
}

TEST(Votes, BallotsAndMasks) {
  std::vector<uint32_t> out(128);
  expect_none(run({.function = "vote", .bindings = {buffer(0, out)}, .group = {32}}).faults);
  uint32_t third = 0;
  for (unsigned lane = 0; lane < 32; lane += 3) third |= 1u << lane;
  for (unsigned lane = 0; lane < 32; lane++) {
    EXPECT_EQ(out[lane], third ^ 2) << lane;
    EXPECT_EQ(out[32 + lane], 0xFFFFFFFF);
    EXPECT_EQ(out[64 + lane], 2u + 1000);
    EXPECT_EQ(out[96 + lane], lane == 0);
  }
}

TEST(Votes, OfASmallerSimdgroup) {
  std::vector<uint32_t> out(128);
  expect_none(run({.function = "vote", .bindings = {buffer(0, out)}, .group = {12}}).faults);
  EXPECT_EQ(out[0], 0b001001001001u ^ 2);
  EXPECT_EQ(out[32], 0xFFFu);
}

TEST(Quads, ShufflesAndSums) {
  std::vector<int32_t> out(256);
  expect_none(run({.function = "use_quads", .bindings = {buffer(0, out)}, .group = {32}}).faults);
  for (int lane = 0; lane < 32; lane++) {
    const int first = lane / 4 * 4, last = first + 3;
    const std::vector<int32_t> expected = {
        4 * first + 6,
        last * 100 + first,
        lane ^ 3,
        first + 2,
        (lane == first ? lane : lane - 1) * 100 + (lane == last ? lane : lane + 1),
        lane / 4,
        (first < 28 ? 1 : 0) + (first == 4 ? 2 : 0),
        (lane + 3) % 32 * 100 + (lane + 29) % 32};
    EXPECT_EQ(std::vector<int32_t>(&out[size_t(lane) * 8], &out[size_t(lane) * 8] + 8), expected)
        << lane;
  }
}

TEST(Quads, BitwiseSumsOfSimdgroups) {
  std::vector<uint32_t> out(32);
  expect_none(
      run({.function = "combine_bits", .bindings = {buffer(0, out)}, .group = {32}}).faults);
  EXPECT_EQ(out[9], 64u + 1000 * 0 + 10000 * 31);
}

TEST(Vectors, Swizzles) {
  std::vector<float> in{1, 2, 3, 4}, out(4);
  expect_none(
      run({.function = "reorder", .bindings = {buffer(0, in), buffer(1, out)}, .group = {1}})
          .faults);
  EXPECT_EQ(out, std::vector<float>({8, 4, 3 + 3, 3 + 4}));
}

}  // namespace
}  // namespace sim
