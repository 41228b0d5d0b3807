// SPDX-License-Identifier: MIT
// Bounds, uninitialised memory and stray pointers.
#include <cmath>

#include "run_kernel.h"

namespace sim {
namespace {

constexpr int kThreads = 64;

struct Floats : std::vector<float> {
  Floats() : std::vector<float>(kThreads, 1.0f) {}
};

Result copy_shifted(int read_shift, int write_shift) {
  Floats from, to;
  return run(
      {.function = "copy_shifted",
       .bindings = {buffer(0, from), buffer(1, to), bytes(2, read_shift), bytes(3, write_shift)},
       .group = {kThreads}},
      {.device_races = Options::Races::kIgnore});
}

Result run_on_floats(const std::string& function, const Options& options = {}) {
  Floats out;
  return run({.function = function, .bindings = {buffer(0, out)}, .group = {kThreads}}, options);
}

TEST(Bounds, InsideIsFine) { expect_fault(copy_shifted(0, 0), ""); }

TEST(Bounds, LoadPastTheEnd) {
  expect_fault(
      copy_shifted(1, 0),
      "access outside any buffer (4 bytes) in device memory at byte 256 of buffer 0 (from), "
      "which has 256 bytes");
}

TEST(Bounds, LoadBeforeTheBeginning) {
  expect_fault(
      copy_shifted(-1, 0),
      "access outside any buffer (4 bytes) in device memory at byte -4 of buffer 0 (from)");
}

TEST(Bounds, StorePastTheEnd) {
  expect_fault(copy_shifted(0, 1),
               "access outside any buffer (4 bytes) in device memory at byte 256 of buffer 1 (to)");
}

TEST(Bounds, StoreFarAway) {
  expect_fault(
      copy_shifted(0, 8000),
      "access outside any buffer (4 bytes) in device memory at byte 32000 of buffer 1 (to)");
}

TEST(Bounds, AFaultNamesThePlace) {
  expect_fault(copy_shifted(1, 0),
               "by SIMD group 1 lane 31, after the start of the kernel, in threadgroup (0,0,0) of "
               "copy_shifted");
}

TEST(Bounds, LoadPastThreadgroupArray) {
  expect_fault(
      run_on_floats("read_past_threadgroup_array", {.threadgroup_races = Options::Races::kIgnore}),
      "threadgroup memory");
}

TEST(Bounds, StorePastThreadgroupArray) {
  expect_fault(
      run_on_floats("write_past_threadgroup_array"),
      "access outside any buffer (4 bytes) in threadgroup memory at byte 256 of array 0 (of "
      "256 bytes)");
}

TEST(Bounds, UnboundArgument) {
  Floats to;
  const int shift = 0;
  expect_fault(run({.function = "copy_shifted",
                    .bindings = {buffer(1, to), bytes(2, shift), bytes(3, shift)},
                    .group = {kThreads}}),
               "access outside any buffer (4 bytes) through argument 0, which is not bound");
}

TEST(Bounds, StoreToConstant) {
  Floats value;
  expect_fault(run_on_floats("store_to_constant"),
               "store to memory that the kernel declares const");
}

TEST(StrayPointers, Null) {
  expect_fault(run_on_floats("load_through_null"), "outside every kind of memory");
}

TEST(StrayPointers, ProgramScopeVariable) {
  expect_fault(run_on_floats("store_program_scope"), "to a program-scope variable");
}

TEST(StrayPointers, PrivateMemoryOfAnotherThread) {
  expect_fault(run_on_floats("share_private_memory"), "in the private memory of another thread");
}

TEST(Uninitialised, ThreadgroupMemory) {
  expect_fault(run_on_floats("read_unwritten_threadgroup"),
               "read of uninitialised memory (4 bytes) in threadgroup memory at byte 20");
}

TEST(Uninitialised, MatrixIsNotANumber) {
  Floats out;
  out.resize(32);
  const Result result =
      run({.function = "use_unset_matrix", .bindings = {buffer(0, out)}, .group = {32}});
  expect_fault(result, "");
  for (float value : out) EXPECT_TRUE(std::isnan(value));
}

TEST(Uninitialised, DeviceMemory) {
  Floats in, out;
  std::vector<uint8_t> written(kThreads * sizeof(float), 0);
  Binding scratch = buffer(0, in);
  scratch.written = written.data();
  const Dispatch read{
      .function = "add_one", .bindings = {scratch, buffer(1, out)}, .group = {kThreads}};
  expect_fault(run(read),
               "read of uninitialised memory (4 bytes) in device memory at byte 0 of "
               "buffer 0 (in)");
  expect_fault(run({.function = "fill", .bindings = {scratch}, .group = {kThreads / 2}}), "");
  expect_fault(run(read), "device memory at byte 128 of buffer 0");
  expect_fault(run({.function = "fill", .bindings = {scratch}, .group = {kThreads}}), "");
  expect_fault(run(read), "");
}

}  // namespace
}  // namespace sim
