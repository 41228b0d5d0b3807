// SPDX-License-Identifier: MIT
// What Metal's validation would refuse.
#include "run_kernel.h"

namespace sim {
namespace {

Result run_on_floats(const std::string& function, Size group, int parameter = 0) {
  std::vector<float> out(8192);
  return run(
      {.function = function, .bindings = {buffer(0, out), bytes(1, parameter)}, .group = group});
}

TEST(Limits, ThreadgroupMemory) {
  expect_fault(run_on_floats("large_threadgroup_memory", {32}), "");
  EXPECT_EQ(run_on_floats("large_threadgroup_memory", {32}).counters.threadgroup_memory, 32768u);
  expect_fault(run_on_floats("large_threadgroup_memory", {32}, 1),
               "more than 32768 bytes of threadgroup memory (32784)");
}

TEST(Limits, Threads) {
  expect_fault(run_on_floats("threadgroups_write_one_place", {1024}), "");
  expect_fault(run_on_floats("threadgroups_write_one_place", {32, 33}),
               "a threadgroup of 32 x 33 x 1 threads; threadgroups_write_one_place allows 1 to "
               "1024");
  expect_fault(run_on_floats("threadgroups_write_one_place", {0}), "allows 1 to 1024");
}

TEST(Limits, ThreadsThatTheKernelAllows) {
  expect_fault(run_on_floats("limited_threads", {64}), "");
  expect_fault(run_on_floats("limited_threads", {65}), "limited_threads allows 1 to 64");
  EXPECT_EQ(kernel_info("limited_threads").max_threads, 64);
}

TEST(Limits, BufferIndices) {
  std::vector<float> out(32);
  const auto run_with = [&out](int index) {
    return run(
        {.function = "fill", .bindings = {buffer(0, out), buffer(index, out)}, .group = {32}});
  };
  expect_fault(run_with(30), "");
  expect_fault(run_with(31), "argument 31 is out of range, 0 to 30 are allowed");
  expect_fault(run_with(-1), "argument -1 is out of range");
}

TEST(Limits, InlineBytes) {
  std::vector<char> large(4097);
  std::vector<float> out(32);
  Binding binding = buffer(0, large);
  binding.kind = Binding::Kind::kBytes;
  const Dispatch dispatch{
      .function = "sum_parameters", .bindings = {binding, buffer(1, out)}, .group = {32}};
  expect_fault(run(dispatch), "argument 0 sets 4097 bytes inline, at most 4096 are allowed");
}

TEST(Limits, ReferencedType) {
  std::vector<float> params(3), out(32);
  const Dispatch dispatch{
      .function = "sum_parameters", .bindings = {buffer(0, params), buffer(1, out)}, .group = {32}};
  expect_fault(run(dispatch), "argument 0 (params) is bound to 12 bytes, its type has 16");
}

TEST(Limits, MissingReference) {
  std::vector<float> out(32);
  expect_fault(run({.function = "sum_parameters", .bindings = {buffer(1, out)}, .group = {32}}),
               "argument 0 (params) is not bound, in a dispatch of sum_parameters");
}

TEST(Limits, Alignment) {
  std::vector<char> out(200);
  Binding binding = buffer(0, out);
  binding.data = out.data() + 2;
  binding.bytes -= 2;
  expect_fault(run({.function = "fill", .bindings = {binding}, .group = {32}}),
               "argument 0 (out) is not aligned to 4 bytes");
}

TEST(Limits, EmptyGrid) {
  std::vector<float> out(32);
  expect_fault(run({.function = "fill", .bindings = {buffer(0, out)}, .grid = {0}, .group = {32}}),
               "an empty grid, 0 x 1 x 1");
}

TEST(Limits, ThreadgroupArgument) {
  std::vector<float> out(32);
  const auto run_with = [&out](std::vector<Binding> lengths) {
    lengths.push_back(buffer(0, out));
    return run({.function = "use_threadgroup_argument", .bindings = lengths, .group = {32}});
  };
  expect_fault(run_with({{Binding::Kind::kThreadgroup, 1, nullptr, 128}}), "");
  expect_fault(run_with({}), "no length is set for threadgroup argument 1 (values)");
  expect_fault(run_with({{Binding::Kind::kThreadgroup, 1, nullptr, 120}}), "not a multiple of 16");
  expect_fault(run_with({{Binding::Kind::kThreadgroup, 1, nullptr, 64}}),
               "access outside any buffer (4 bytes) in threadgroup memory");
}

TEST(Limits, UnknownKernel) {
  expect_fault(run({.function = "nonsense", .bindings = {}}), "there is no kernel named nonsense");
  EXPECT_TRUE(kernel_info("nonsense").name.empty());
}

}  // namespace
}  // namespace sim
