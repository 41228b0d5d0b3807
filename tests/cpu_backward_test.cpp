// SPDX-License-Identifier: MIT
//
// The CPU back end's backward pass where the table of cases does not look: with every instruction
// set in turn, around the edges of its tiles, with part of the gradients, with NaN where nobody
// sees it, and with any number of threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "sdpa/cpu/backend.h"
#include "sdpa/cpu/backward_plan.h"
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/reference.h"
#include "sdpa/threads.h"
#include "tests/conformance.h"

namespace sdpa::cases {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Runs the rest of a scope with one instruction set.
struct Forced {
  explicit Forced(std::string_view name) { cpu::set_instruction_set(name); }

  ~Forced() { cpu::set_instruction_set(""); }
};

template <typename Function>
void for_each_instruction_set(const Function& function) {
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    if (!set.runs_here) continue;
    SCOPED_TRACE(set.name);
    const Forced forced(set.name);
    function();
  }
}

Case shape(std::int64_t heads, std::int64_t q_len, std::int64_t kv_len, std::int64_t dim) {
  return {.q_heads = heads,
          .kv_heads = heads,
          .q_len = q_len,
          .kv_len = kv_len,
          .qk_dim = dim,
          .v_dim = dim};
}

/// Out and log-sum-exp from the oracle, then the gradients.
void run_backward(CaseData& data) {
  data.reset_outputs();
  reference::forward(data.problem, data.forward_tensors());
  cpu::backend().backward(data.problem, data.backward_tensors());
}

void expect_agrees(const Case& spec) {
  SCOPED_TRACE(describe(spec));
  CaseData data(spec, 11);
  const Expected oracle = expected(data);
  for_each_instruction_set([&] {
    run_backward(data);
    for (const std::string& sentence : backward_failures(data, oracle)) ADD_FAILURE() << sentence;
  });
}

TEST(CpuBackward, LengthsAroundTheEdgesOfTiles) {
  for (const std::int64_t length :
       {1, 15, 16, 17, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 193, 257})
    for (const Causal causal : {Causal::kNone, Causal::kUpperLeft, Causal::kLowerRight}) {
      Case spec = shape(1, length, 300 - length, 8);
      spec.causal = causal;
      expect_agrees(spec);
    }
}

TEST(CpuBackward, HeadDimsAroundTheEdgesOfTiles) {
  for (const std::int64_t dim :
       {1, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 80, 96, 112, 127, 129, 257, 512}) {
    Case spec = shape(2, 21, 35, dim);
    spec.v_dim = 513 - dim;
    spec.causal = Causal::kLowerRight;
    expect_agrees(spec);
  }
}

TEST(CpuBackward, PairsOfBFloat16AroundTheEdgesOfTiles) {
  for (const std::int64_t keys : {128, 129, 190, 193, 257})
    for (const std::int64_t dim : {1, 15, 32, 33, 129}) {
      Case spec = shape(2, keys - 97, keys, dim);
      spec.v_dim = (dim + 17) % 100;
      spec.dtype = DType::kBFloat16;
      spec.causal = dim % 2 == 0 ? Causal::kNone : Causal::kLowerRight;
      spec.dropout = dim == 15 ? 0.1 : 0;
      expect_agrees(spec);
    }
}

TEST(CpuBackward, DtypesAndEveryFeatureAtOnce) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (const MaskShape mask : {MaskShape::kNone, MaskShape::kFull, MaskShape::kPerHead,
                                 MaskShape::kMatrix, MaskShape::kKeys}) {
      Case spec = shape(2, 131, 200, 40);
      spec.batch = 2;
      spec.q_heads = 6;
      spec.v_dim = 24;
      spec.dtype = dtype;
      spec.mask = {.shape = mask, .dtype = DType::kFloat32};
      spec.causal = Causal::kLowerRight;
      spec.window = {.left = 90, .right = -1};
      spec.softcap = 3;
      spec.sinks = true;
      spec.dropout = 0.2;
      spec.grad_lse = true;
      expect_agrees(spec);
    }
}

/// Many rows add up to the one key, and with them any error of dP - delta. In 16 bits there is
/// none; float32 takes delta from the output, which the portable kernels give to a last bit.
TEST(CpuBackward, RowsThatSeeOneKeyHaveNoGradientOfScores) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (const double softcap : {0.0, 0.7})
      for (const std::int64_t dim : {1, 40}) {
        Case spec = shape(2, 300, 1, dim);
        spec.v_dim = 33;
        spec.dtype = dtype;
        spec.softcap = softcap;
        spec.mask = {.shape = MaskShape::kFull, .dtype = dtype};
        SCOPED_TRACE(describe(spec));
        CaseData data(spec, 11);
        for_each_instruction_set([&] {
          data.reset_outputs();
          cpu::backend().forward(data.problem, data.forward_tensors());
          cpu::backend().backward(data.problem, data.backward_tensors());
          const double most = dtype == DType::kFloat32 ? 1e-6 : 0;
          for (const double value : data.grad_query.values()) ASSERT_LE(std::abs(value), most);
          for (const double value : data.grad_key.values()) ASSERT_LE(std::abs(value), most);
        });
      }
}

/// Where all keys are the same, a row's gradient is a multiple of the sum of dS, which is 0. Were
/// delta taken from the output, its rounding to 16 bits would show, most in the first rows of a
/// causal problem. (Pairs of bfloat16 round dS itself.)
TEST(CpuBackward, RowsThatSeeFewKeysDoNotFeelTheRoundingOfTheOutput) {
  for (const auto& [dtype, length] : {std::pair{DType::kFloat16, std::size_t{100}},
                                      {DType::kFloat16, 300},
                                      {DType::kBFloat16, 100}}) {
    Case spec = shape(2, static_cast<std::int64_t>(length), static_cast<std::int64_t>(length), 32);
    spec.dtype = dtype;
    spec.causal = Causal::kUpperLeft;
    SCOPED_TRACE(describe(spec));
    CaseData data(spec, 11);
    data.key.assign(std::vector<double>(data.key.values().size(), 1.0));
    for_each_instruction_set([&] {
      run_backward(data);
      const std::vector<double> gradient = data.grad_query.values();
      for (std::size_t head = 0; head < 2; ++head)
        for (std::size_t n = 0; n < 16 * 32; ++n)
          ASSERT_LE(std::abs(gradient[head * length * 32 + n]), 2e-6);
    });
  }
}

TEST(CpuBackward, ManyQueriesOfOneHeadAreSplit) {
  for (const Window window : {Window{}, Window{.left = 100, .right = 30}}) {
    Case spec = shape(1, 700, 900, 16);
    spec.window = window;
    expect_agrees(spec);
    spec.causal = Causal::kUpperLeft;
    expect_agrees(spec);
  }
}

/// Panels of a slab see different keys of a step, from any of its keys to any.
TEST(CpuBackward, BandsOfManyWidths) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16})
    for (const std::int64_t width : {7, 15, 40, 63, 64, 100})
      for (const std::int64_t group : {1, 3}) {
        Case spec = shape(1, 333 / group, 391 / group, 17);
        spec.q_heads = group;
        spec.dtype = dtype;
        spec.causal = Causal::kLowerRight;
        spec.window = {.left = width, .right = -1};
        spec.mask = {.shape = MaskShape::kMatrix, .dtype = DType::kFloat32};
        expect_agrees(spec);
      }
}

/// Rows of a group that follow each other without a gap, to the next head or to its end, are read
/// in place; all others are staged.
TEST(CpuBackward, RowsOfAGroupHoweverTheyLie) {
  for (const Layout layout : {Layout::kContiguous, Layout::kTransposed, Layout::kSliced})
    for (const std::int64_t kv_heads : {1, 2})
      for (const std::int64_t group : {1, 2, 3}) {
        Case spec = shape(kv_heads, 70, 33, 32);
        spec.q_heads = kv_heads * group;
        spec.layout = layout;
        expect_agrees(spec);
      }
}

TEST(CpuBackward, OneQueryAndOneKeyAHead) {
  for (const Layout layout : {Layout::kContiguous, Layout::kColumnStride})
    for (const std::int64_t dim : {1, 7, 64, 65}) {
      Case spec = shape(2, 1, 1, dim);
      spec.batch = 70;
      spec.q_heads = 6;
      spec.v_dim = 80 - dim;
      spec.layout = layout;
      spec.grad_lse = true;
      expect_agrees(spec);
    }
}

TEST(CpuBackward, ScoresOfASingleKeyHaveNoGradientAtAll) {
  for (const std::int64_t v_dim : {1, 33, 64, 129}) {
    Case spec = shape(2, 33, 1, 5);
    spec.v_dim = v_dim;
    CaseData data(spec, 23);
    for_each_instruction_set([&] {
      run_backward(data);
      for (const Tensor* gradient : {&data.grad_query, &data.grad_key})
        for (const double value : gradient->values()) ASSERT_EQ(value, 0) << describe(spec);
    });
  }
}

TEST(CpuBackward, NaNOfAPairReachesItsHeadOnly) {
  for (Tensor CaseData::* input :
       {&CaseData::query, &CaseData::key, &CaseData::value, &CaseData::grad_out}) {
    CaseData data(shape(3, 1, 1, 16), 19);
    std::vector<double> values = (data.*input).values();
    values[16] = kNaN;
    (data.*input).assign(values);
    const Expected oracle = expected(data);
    run_backward(data);
    for (const std::string& sentence : backward_failures(data, oracle)) ADD_FAILURE() << sentence;
  }
}

TEST(CpuBackward, DoublesOfManyHeads) {
  Case spec = shape(2, 20, 30, 8);
  spec.batch = 3;
  spec.q_heads = 4;
  spec.dtype = DType::kFloat64;
  spec.dropout = 0.3;
  expect_agrees(spec);
}

/// The gradients, in the order of BackwardTensors.
std::vector<std::vector<double>> gradients(const CaseData& data) {
  return {data.grad_query.values(), data.grad_key.values(), data.grad_value.values(),
          data.grad_mask.values(), data.grad_sinks.values()};
}

/// NaN is a value like any other here: only bits matter.
bool is_same(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

Case with_all_gradients() {
  Case spec = shape(2, 70, 150, 20);
  spec.mask = {.shape = MaskShape::kKeys, .dtype = DType::kFloat32};
  spec.sinks = true;
  spec.dropout = 0.1;
  spec.softcap = 5;
  return spec;
}

TEST(CpuBackward, OnlyTheGradientsAskedForAreWritten) {
  CaseData data(with_all_gradients(), 3);
  run_backward(data);
  const auto all = gradients(data);
  for (unsigned wanted = 0; wanted < 32; ++wanted) {
    SCOPED_TRACE(wanted);
    data.reset_outputs();
    const auto untouched = gradients(data);
    reference::forward(data.problem, data.forward_tensors());
    BackwardTensors tensors = data.backward_tensors();
    TensorView* const views[] = {&tensors.grad_query, &tensors.grad_key, &tensors.grad_value,
                                 &tensors.grad_mask, &tensors.grad_sinks};
    for (unsigned n = 0; n < 5; ++n)
      if ((wanted >> n & 1) == 0) *views[n] = {};
    cpu::backend().backward(data.problem, tensors);
    const auto some = gradients(data);
    for (unsigned n = 0; n < 5; ++n)
      EXPECT_TRUE(is_same(some[n], (wanted >> n & 1) == 0 ? untouched[n] : all[n])) << n;
  }
}

TEST(CpuBackward, ThreadsDoNotChangeABit) {
  for (const std::int64_t heads : {1, 3, 40}) {
    CaseData data(
        [&] {
          Case spec = shape(heads, heads == 1 ? 500 : 100, 600, 16);
          spec.causal = Causal::kLowerRight;
          spec.mask = {.shape = MaskShape::kMatrix, .dtype = DType::kFloat32};
          spec.sinks = true;
          return spec;
        }(),
        5);
    run_backward(data);
    const auto first = gradients(data);
    for (const int threads : {1, 2, 3, 7}) {
      set_thread_count(threads);
      run_backward(data);
      const auto again = gradients(data);
      for (std::size_t n = 0; n < first.size(); ++n)
        EXPECT_TRUE(is_same(first[n], again[n])) << heads << " heads, " << threads << " threads";
    }
    set_thread_count(0);
  }
}

/// Overwrites one row of a head with NaN.
void poison_row(Tensor& tensor, std::int64_t row) {
  std::vector<double> values = tensor.values();
  const TensorView& view = tensor.view();
  for (std::int64_t head = 0; head < view.shape[0] * view.shape[1]; ++head)
    for (std::int64_t column = 0; column < view.shape[3]; ++column)
      values[static_cast<std::size_t>((head * view.shape[2] + row) * view.shape[3] + column)] =
          kNaN;
  tensor.assign(values);
}

TEST(CpuBackward, NaNReachesOnlyWhatSeesIt) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16})
    for (const std::int64_t left : {-1, 20})
      for (Tensor CaseData::* input :
           {&CaseData::query, &CaseData::key, &CaseData::value, &CaseData::grad_out}) {
        Case spec = shape(2, 140, 140, 24);
        spec.dtype = dtype;
        spec.causal = Causal::kUpperLeft;
        spec.window = {.left = left, .right = -1};
        CaseData data(spec, 13);
        const bool is_key = input == &CaseData::key || input == &CaseData::value;
        poison_row(data.*input, 100);
        const Expected oracle = expected(data);
        for_each_instruction_set([&] {
          run_backward(data);
          for (const std::string& sentence : backward_failures(data, oracle))
            ADD_FAILURE() << (is_key ? "NaN key: " : "NaN query: ") << sentence;
        });
      }
}

TEST(CpuBackward, RowsAndKeysThatAreMaskedContributeNothing) {
  Case spec = shape(1, 50, 90, 16);
  spec.mask = {.shape = MaskShape::kFull, .pattern = MaskPattern::kTail};
  CaseData data(spec, 17);
  poison_row(data.key, 89);
  poison_row(data.value, 89);
  const Expected padding = expected(data);
  for_each_instruction_set([&] {
    run_backward(data);
    for (const std::string& sentence : backward_failures(data, padding)) ADD_FAILURE() << sentence;
  });
  spec.mask.pattern = MaskPattern::kEmptyRow;
  CaseData empty_row(spec, 17);
  poison_row(empty_row.query, 0);
  poison_row(empty_row.grad_out, 0);
  const Expected row = expected(empty_row);
  for_each_instruction_set([&] {
    run_backward(empty_row);
    for (const std::string& sentence : backward_failures(empty_row, row)) ADD_FAILURE() << sentence;
    for (const double value : empty_row.grad_query.values()) ASSERT_FALSE(std::isnan(value));
  });
}

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
