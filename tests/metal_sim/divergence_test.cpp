// SPDX-License-Identifier: MIT
// Lanes that do not meet where they must.
#include "run_kernel.h"

namespace sim {
namespace {

Result run_on_floats(const std::string& function, unsigned group = 32) {
  std::vector<float> in(64, 1.0f), out(64);
  std::vector<Binding> bindings = {buffer(0, in), buffer(1, out)};
  return run({.function = function, .bindings = bindings, .group = {group}});
}

TEST(Divergence, DifferentCollectives) {
  expect_fault(run_on_floats("two_shuffles"),
               "divergence: SIMD group 0 lane 0 is at a SIMD shuffle (check_kernels.h:");
}

TEST(Divergence, OneCollectiveAtTwoPlaces) {
  expect_fault(run_on_floats("same_shuffle_twice"),
               "divergence: SIMD group 0 lane 0 is at a SIMD reduction (check_kernels.h:");
}

TEST(Divergence, LanesThatLeaveEarly) {
  expect_fault(run_on_floats("leave_early"), "SIMD group 0 lane 3 at the end of the kernel");
}

TEST(Divergence, HalfAThreadgroupAtABarrier) {
  expect_fault(run_on_floats("half_at_barrier", 64),
               "divergence in the threadgroup: SIMD group 0 "
               "lane 0 is at threadgroup_barrier");
  expect_fault(run_on_floats("half_at_barrier", 32), "");
}

TEST(Divergence, MatrixLoadBySomeLanes) {
  expect_fault(run_on_floats("some_lanes_load_matrix"),
               "divergence: SIMD group 0 lane 0 is at simdgroup_load (check_kernels.h:");
  expect_fault(run_on_floats("some_lanes_load_matrix", 7), "");
}

Result shuffle_from(int lane, unsigned group) {
  std::vector<float> out(64);
  return run(
      {.function = "shuffle_from", .bindings = {buffer(0, out), bytes(1, lane)}, .group = {group}});
}

TEST(Divergence, ShuffleFromALaneThatIsNotThere) {
  expect_fault(shuffle_from(31, 32), "");
  expect_fault(shuffle_from(32, 64), "a shuffle takes from lane 32, which is not there");
  expect_fault(shuffle_from(19, 20), "");
  expect_fault(shuffle_from(20, 20), "a shuffle takes from lane 20, which is not there");
}

TEST(Divergence, MatrixProductNeedsAFullSimdgroup) {
  expect_fault(run_on_floats("multiply_identity", 64), "");
  expect_fault(run_on_floats("multiply_identity", 40),
               "a matrix multiplication in a SIMD group of 8 lanes");
}

}  // namespace
}  // namespace sim
