// SPDX-License-Identifier: MIT
//
// How the CPU back end cuts a backward pass into tasks.
#include <gtest/gtest.h>

#include <algorithm>

#include "sdpa/cpu/backend.h"
#include "sdpa/cpu/backward_plan.h"
#include "tests/conformance.h"

namespace sdpa::cases {
namespace {

TEST(CpuBackwardPlan, EveryVisiblePairBelongsToOnePart) {
  for (const std::int64_t length : {1, 100, 500, 5000})
    for (const Causal causal : {Causal::kNone, Causal::kUpperLeft, Causal::kLowerRight})
      for (const std::int64_t left : {-1, 300}) {
        Problem s{.batch = 1,
                  .q_heads = 6,
                  .kv_heads = 2,
                  .q_len = length,
                  .kv_len = 3000,
                  .qk_dim = 64,
                  .v_dim = 64,
                  .causal = causal,
                  .window = {.left = left, .right = -1}};
        const cpu::BackwardPlan plan = cpu::plan_backward(s);
        const std::int64_t rows = length * s.group();
        for (std::int64_t unit = 0; unit < plan.units; ++unit) {
          const std::int64_t row = unit * plan.unit_rows;
          const cpu::BlockRange seen =
              cpu::visible_blocks(s, row, std::min(plan.unit_rows, rows - row));
          for (std::int64_t block = seen.first; block < seen.last; ++block)
            EXPECT_EQ(1, std::ranges::count_if(plan.parts, [&](const cpu::BackwardPart& part) {
                        return part.first_unit <= unit && unit < part.last_unit &&
                               part.first_block <= block && block < part.last_block;
                      }));
        }
      }
}

/// Pairs of a row and a block of keys that a part computes.
double work(const Problem& s, const cpu::BackwardPlan& plan, const cpu::BackwardPart& part) {
  const std::int64_t rows = s.q_len * s.group();
  std::int64_t sum = 0;
  for (std::int64_t unit = part.first_unit; unit < part.last_unit; ++unit) {
    const std::int64_t row = unit * plan.unit_rows, count = std::min(plan.unit_rows, rows - row);
    const cpu::BlockRange seen = cpu::visible_blocks(s, row, count);
    sum += count *
           std::max<std::int64_t>(
               std::min(seen.last, part.last_block) - std::max(seen.first, part.first_block), 0);
  }
  return static_cast<double>(sum);
}

/// How long the busiest of `workers` works, against all of them working all the time: each takes
/// the next task as soon as it is free.
double imbalance(const Problem& s, int workers) {
  const cpu::BackwardPlan plan = cpu::plan_backward(s);
  const std::int64_t heads = s.batch * s.kv_heads;
  const std::int64_t tasks = heads * static_cast<std::int64_t>(plan.parts.size());
  std::vector<double> busy(static_cast<std::size_t>(workers));
  double total = 0;
  for (std::int64_t task = 0; task < tasks; ++task) {
    const double length = work(s, plan, plan.part_of(task, heads));
    *std::ranges::min_element(busy) += length;
    total += length;
  }
  return *std::ranges::max_element(busy) * workers / total;
}

TEST(CpuBackwardPlan, KeepsManyWorkersBusy) {
  for (const int workers : {2, 8, 16})
    for (const std::int64_t heads : {1, 8, 16, 32})
      for (const std::int64_t length : {2048, 4096})
        for (const Causal causal : {Causal::kNone, Causal::kUpperLeft}) {
          const Problem s{.batch = 1,
                          .q_heads = heads,
                          .kv_heads = heads,
                          .q_len = length,
                          .kv_len = length,
                          .qk_dim = 64,
                          .v_dim = 64,
                          .causal = causal};
          EXPECT_LE(imbalance(s, workers), heads == 1 ? 1.2 : 1.02)
              << workers << " workers, " << heads << " heads of " << length
              << (causal == Causal::kNone ? "" : ", causal");
        }
}

TEST(CpuBackwardPlan, IsWhatTheBackEndExplains) {
  Problem s{
      .batch = 1, .q_heads = 2, .kv_heads = 2, .q_len = 7, .kv_len = 9, .qk_dim = 8, .v_dim = 8};
  const auto explained = [&s] { return cpu::backend().explain(s, Pass::kBackward); };
  const Forced forced("portable");
  EXPECT_EQ(explained(), "portable: 16-row units, 1 part a key head");
  EXPECT_NE(explained(), cpu::backend().explain(s, Pass::kForward));
  s.q_len = s.kv_len = 1;
  EXPECT_EQ(explained(), "one query and one key a head: dot products, nothing is staged");
  s.dtype = DType::kFloat64;
  EXPECT_EQ(explained(), cpu::backend().explain(s, Pass::kForward));
}

TEST(CpuBackwardPlan, MemoryGrowsWithLengthAlone) {
  Problem s{.batch = 1,
            .q_heads = 1,
            .kv_heads = 1,
            .q_len = 1 << 15,
            .kv_len = 1 << 15,
            .qk_dim = 64,
            .v_dim = 64};
  const cpu::BackwardPlan plan = cpu::plan_backward(s);
  EXPECT_GT(plan.parts.size(), 8u);
  EXPECT_LE(plan.key_rows, 16 * s.kv_len);
  s.q_len *= 4;
  s.kv_len *= 4;
  EXPECT_LE(cpu::plan_backward(s).key_rows, 4 * plan.key_rows + 128 * 32);
}

}  // namespace
}  // namespace sdpa::cases
