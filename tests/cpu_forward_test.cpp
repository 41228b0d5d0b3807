// SPDX-License-Identifier: MIT
//
// The CPU forward pass on every instruction set that runs here, against the oracle: the conformance
// cases, sizes around every edge of a tile, values that are not finite, and determinism.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <limits>
#include <sstream>

#include "sdpa/cpu/decode_plan.h"
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/cpu/plan.h"
#include "sdpa/element.h"
#include "sdpa/reference.h"
#include "sdpa/threads.h"
#include "tests/conformance.h"

namespace sdpa::cases {
namespace {

using cpu::InstructionSet;

std::string label(const char* first, std::int64_t a, const char* second, std::int64_t b) {
  std::ostringstream text;
  text << first << a << second << b;
  return text.str();
}

/// The sets that run here; the others are named on the console.
std::vector<const InstructionSet*> sets_here() {
  std::vector<const InstructionSet*> sets;
  for (const InstructionSet& set : cpu::instruction_sets()) {
    if (set.runs_here)
      sets.push_back(&set);
    else
      std::cout << set.name << " does not run on this processor\n";
  }
  return sets;
}

void expect_oracle(CaseData& data) {
  const Expected oracle = expected(data);
  for (const InstructionSet* set : sets_here()) {
    data.reset_outputs();
    set->kernels.forward(data.problem, data.forward_tensors());
    for (const std::string& sentence : forward_failures(data, oracle))
      ADD_FAILURE() << set->name << ": " << sentence;
  }
}

void expect_oracle(const Case& spec) {
  SCOPED_TRACE(spec.name);
  CaseData data(spec, 11);
  expect_oracle(data);
}

TEST(CpuForward, ConformanceCases) {
  for (const Case& spec : suite("conformance"))
    if (!has_empty_extent(spec) && spec.dtype != DType::kFloat64) expect_oracle(spec);
}

TEST(CpuForward, LengthsAroundTileEdges) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16})
    for (const std::int64_t q_len : {1, 3, 15, 16, 17, 31, 33, 47, 48, 49, 97})
      for (const std::int64_t kv_len : {1, 2, 7, 8, 9, 127, 128, 129, 263})
        for (const Causal causal : {Causal::kNone, Causal::kUpperLeft, Causal::kLowerRight})
          expect_oracle({.name = label("q", q_len, " kv", kv_len),
                         .dtype = dtype,
                         .q_len = q_len,
                         .kv_len = kv_len,
                         .qk_dim = 5,
                         .v_dim = 6,
                         .causal = causal});
}

TEST(CpuForward, HeadDimensions) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (const std::int64_t dim : {1, 2, 3, 7, 8, 9, 16, 31, 33, 64, 80, 127, 512})
      for (const std::int64_t v_dim : {dim, dim % 13 + 1})
        expect_oracle({.name = label("dims ", dim, "/", v_dim),
                       .dtype = dtype,
                       .q_heads = 4,
                       .kv_heads = 2,
                       .q_len = 13,
                       .kv_len = 21,
                       .qk_dim = dim,
                       .v_dim = v_dim});
}

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A value that only some rows see must reach those rows and no others.
void expect_confined(const Case& spec, double poison) {
  for (const bool in_value : {false, true}) {
    SCOPED_TRACE(::testing::Message() << spec.name << (in_value ? " value " : " key ") << poison);
    CaseData data(spec, 5);
    const TensorView view = in_value ? data.value.view() : data.key.view();
    for (const std::int64_t row : {std::int64_t{3}, spec.kv_len / 2, spec.kv_len - 1})
      *view.at<float>(0, 0, row, 0) = static_cast<float>(poison);
    expect_oracle(data);
  }
}

TEST(CpuForward, ValuesThatAreNotFiniteReachOnlyRowsThatSeeThem) {
  Case spec{.name = "causal",
            .q_len = 150,
            .kv_len = 150,
            .qk_dim = 9,
            .v_dim = 11,
            .causal = Causal::kUpperLeft};
  for (const double poison : {kNaN, kInfinity}) {
    expect_confined(spec, poison);
    Case windowed = spec;
    windowed.name = "window";
    windowed.window = {.left = 20, .right = 3};
    windowed.causal = Causal::kNone;
    expect_confined(windowed, poison);
    Case masked = spec;
    masked.name = "mask";
    masked.causal = Causal::kNone;
    masked.mask = {.shape = MaskShape::kMatrix};
    expect_confined(masked, poison);
    masked.name = "additive mask";
    masked.mask.dtype = DType::kFloat32;
    expect_confined(masked, poison);
    Case dropped = spec;
    dropped.name = "dropout";
    dropped.dropout = 0.5;
    expect_confined(dropped, poison);
  }
}

/// Scores far above the maximum so far, at several places of a tile and of a block of keys; with a
/// mask, some rows see their first key there.
TEST(CpuForward, ScoresThatOutgrowTheMaximum) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    for (const MaskShape mask : {MaskShape::kNone, MaskShape::kMatrix})
      for (const double scale : {0.3, -0.3}) {
        Case spec{.name = "outgrown", .q_len = 70, .kv_len = 400, .qk_dim = 12, .v_dim = 12};
        spec.dtype = dtype;
        spec.mask.shape = mask;
        spec.scale = scale;
        SCOPED_TRACE(::testing::Message() << static_cast<int>(dtype) << " " << scale);
        CaseData data(spec, 6);
        for (const std::int64_t key : {7, 100, 128, 257})
          fill_rows(data.key.view(), key, key + 1, 20.0 + static_cast<double>(key) / 4);
        expect_oracle(data);
      }
}

/// Scores near either end of what a float holds, after keys that a row does not see: all equal, so
/// that the output is the mean of the values seen.
TEST(CpuForward, ExtremeScoresOfRowsThatBeginLate) {
  constexpr double kMost = std::numeric_limits<float>::max();
  for (const double score : {-kMost, -0.4 * kMost, 1e32}) {
    Case spec{.name = "late", .q_len = 50, .kv_len = 300, .qk_dim = 4, .v_dim = 1};
    spec.mask = {.shape = MaskShape::kMatrix, .dtype = DType::kFloat32};
    CaseData data(spec, 7);
    for (std::int64_t row = 0; row < spec.q_len; ++row)
      for (std::int64_t key = 0; key < spec.kv_len; ++key)
        write(data.mask.view(), 0, 0, row, key, key < 5 * row ? -kInfinity : score);
    for (const InstructionSet* set : sets_here()) {
      data.reset_outputs();
      set->kernels.forward(data.problem, data.forward_tensors());
      for (std::int64_t row = 0; row < spec.q_len; ++row) {
        SCOPED_TRACE(::testing::Message() << set->name << " " << score << " row " << row);
        double sum = 0;
        for (std::int64_t key = 5 * row; key < spec.kv_len; ++key)
          sum += read(data.value.view(), 0, 0, key, 0);
        const double mean = sum / static_cast<double>(spec.kv_len - 5 * row);
        EXPECT_NEAR(read(data.out.view(), 0, 0, row, 0), mean, 1e-5);
        EXPECT_TRUE(std::isfinite(read(data.lse.view(), 0, 0, row, 0)));
      }
    }
  }
}

/// Few rows over many keys, with every feature that decode has to know.
std::vector<Case> decode_cases() {
  Case base{.q_heads = 4,
            .kv_heads = 2,
            .q_len = 1,
            .kv_len = 700,
            .qk_dim = 40,
            .v_dim = 19,
            .causal = Causal::kLowerRight};
  Case many_rows = base, masked = base, biased = base, dropped = base, windowed = base;
  many_rows.q_len = 3;
  masked.mask = {.shape = MaskShape::kPerHead};
  biased.mask = {MaskShape::kFull, DType::kFloat32, MaskPattern::kRandom};
  biased.softcap = 3;
  dropped.dropout = 0.4;
  dropped.sinks = true;
  windowed.q_len = 2;
  windowed.window = {.left = 200, .right = -1};
  return {base, many_rows, masked, biased, dropped, windowed};
}

TEST(CpuForward, FewQueriesOverManyKeys) {
  for (Case spec : decode_cases())
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
      for (const Layout layout : {Layout::kContiguous, Layout::kColumnStride}) {
        spec.dtype = dtype;
        spec.layout = layout;
        spec.name = describe(spec);
        expect_oracle(spec);
      }
}

TEST(CpuForward, FewQueriesKeepValuesThatAreNotFiniteToThoseThatSeeThem) {
  for (Case spec : decode_cases()) {
    spec.name = describe(spec);
    for (const double poison : {kNaN, kInfinity}) expect_confined(spec, poison);
  }
}

/// Too many rows to decode, too few blocks of them for many threads: keys are split.
std::vector<Case> split_cases() {
  Case base{.q_heads = 2,
            .kv_heads = 1,
            .q_len = 29,
            .kv_len = 1500,
            .qk_dim = 24,
            .v_dim = 19,
            .causal = Causal::kLowerRight,
            .sinks = true};
  Case masked = base, biased = base, windowed = base, unseen = base;
  masked.mask = {.shape = MaskShape::kPerHead};
  masked.dropout = 0.4;
  biased.mask = {MaskShape::kFull, DType::kFloat32, MaskPattern::kRandom};
  windowed.window = {.left = 1100, .right = -1};
  unseen.mask = {MaskShape::kFull, DType::kBool, MaskPattern::kEmptyRows};
  unseen.sinks = false;
  return {base, masked, biased, windowed, unseen};
}

TEST(CpuForward, FewBlocksOverManyKeys) {
  for (Case spec : split_cases())
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      spec.dtype = dtype;
      spec.name = describe(spec);
      const CaseData data(spec, 5);
      for (const InstructionSet* set : sets_here())
        ASSERT_GT(cpu::plan_forward(data.problem, set->kernels.shape).splits, 1) << spec.name;
      expect_oracle(spec);
    }
}

TEST(CpuForward, FewBlocksKeepValuesThatAreNotFiniteToThoseThatSeeThem) {
  for (Case spec : split_cases()) {
    spec.name = describe(spec);
    for (const double poison : {kNaN, kInfinity}) expect_confined(spec, poison);
  }
}

TEST(CpuForward, KeysOfFewBlocksAreSplitByTheShapeAlone) {
  Problem problem{.batch = 1, .q_heads = 1, .kv_heads = 1, .q_len = 50, .kv_len = 32768};
  const cpu::KernelShape shape{.block_lanes = 48};
  EXPECT_EQ(
      cpu::to_string(cpu::plan_forward(problem, shape), "any"),
      "any: 48 lanes x 128 keys, in place, 1 block a task, keys in 16 parts of 2048, 32 tasks");
  problem.q_len = 1536;
  EXPECT_EQ(cpu::plan_forward(problem, shape).splits, 1) << "there are blocks enough";
  problem.q_len = 50;
  problem.causal = Causal::kUpperLeft;
  EXPECT_EQ(cpu::plan_forward(problem, shape).splits, 1) << "few keys are visible";
}

TEST(CpuForward, KeysOfFewQueriesAreSplitByTheShapeAlone) {
  Problem problem{.batch = 1, .q_heads = 1, .kv_heads = 1, .q_len = 1, .kv_len = 32768};
  const cpu::KernelShape shape{.block_lanes = 48};
  ASSERT_TRUE(cpu::is_decode(problem, shape));
  EXPECT_EQ(cpu::to_string(cpu::plan_decode(problem), "any"),
            "any: decode, 1 row, keys in 128 parts of 256, 128 tasks");
  problem.window.left = 300;
  problem.causal = Causal::kLowerRight;
  EXPECT_LE(cpu::plan_decode(problem).splits, 2);
  problem.q_len = 64;
  EXPECT_FALSE(cpu::is_decode(problem, shape));
}

TEST(CpuForward, LastRowsThatWouldNotFillLanesAreDecoded) {
  Problem problem{.batch = 64,
                  .q_heads = 4,
                  .kv_heads = 2,
                  .q_len = 26,
                  .kv_len = 49,
                  .causal = Causal::kUpperLeft};
  const cpu::ForwardPlan plan = cpu::plan_forward(problem, {.block_lanes = 48});
  EXPECT_EQ(plan.rows, 48);
  EXPECT_EQ(plan.last_rows.first_row, 48);
  EXPECT_EQ(plan.last_rows.rows, 4);
  EXPECT_EQ(plan.last_rows.last_key, 26);
  EXPECT_EQ(cpu::to_string(plan, "any"),
            "any: 48 lanes x 128 keys, in place, 1 block a task, 128 tasks, last 4 rows as decode");
  problem.q_len = 32;
  EXPECT_EQ(cpu::plan_forward(problem, {.block_lanes = 48}).last_rows, cpu::DecodePlan{});
}

TEST(CpuForward, ResultsDoNotDependOnThreads) {
  const Case spec{.name = "threads",
                  .batch = 2,
                  .q_heads = 4,
                  .kv_heads = 2,
                  .q_len = 130,
                  .kv_len = 300,
                  .qk_dim = 64,
                  .v_dim = 64,
                  .causal = Causal::kLowerRight,
                  .dropout = 0.2};
  CaseData data(spec, 3);
  for (const InstructionSet* set : sets_here()) {
    std::vector<double> results[2];
    for (const int threads : {1, 2}) {
      set_thread_count(threads);
      data.reset_outputs();
      set->kernels.forward(data.problem, data.forward_tensors());
      results[threads - 1] = data.out.values();
    }
    set_thread_count(0);
    EXPECT_EQ(results[0], results[1]) << set->name;
  }
}

TEST(InstructionSets, ForcedByName) {
  cpu::set_instruction_set("portable");
  EXPECT_EQ(cpu::instruction_set().name, "portable");
  cpu::set_instruction_set("");
  EXPECT_TRUE(cpu::instruction_set().runs_here);
}

TEST(InstructionSets, UnknownNameIsAnErrorThatListsTheKnown) {
  try {
    cpu::set_instruction_set("sse9");
    FAIL() << "no error";
  } catch (const std::invalid_argument& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("\"sse9\""), std::string::npos) << text;
    EXPECT_NE(text.find("portable."), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace sdpa::cases
