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
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/reference.h"
#include "sdpa/threads.h"
#include "tests/conformance.h"

namespace sdpa::cases {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

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

void run_both(CaseData& data) {
  data.reset_outputs();
  cpu::backend().forward(data.problem, data.forward_tensors());
  cpu::backend().backward(data.problem, data.backward_tensors());
}

/// How far from 1 the sums over all keys of dV are.
double largest_error_of_sums(const CaseData& data) {
  const std::vector<double> gradient = data.grad_value.values();
  const auto columns = static_cast<std::size_t>(data.problem.v_dim);
  const std::size_t keys = static_cast<std::size_t>(data.problem.kv_len);
  double largest = 0;
  for (std::size_t head = 0; head < gradient.size() / columns / keys; ++head)
    for (std::size_t column = 0; column < columns; ++column) {
      double sum = 0;
      for (std::size_t key = 0; key < keys; ++key)
        sum += gradient[(head * keys + key) * columns + column];
      largest = std::max(largest, std::abs(sum - 1));
    }
  return largest;
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

void expect_no_gradient_of_scores(const Case& spec) {
  SCOPED_TRACE(describe(spec));
  CaseData data(spec, 11);
  for_each_instruction_set([&] {
    run_both(data);
    for (const Tensor* gradient : {&data.grad_query, &data.grad_key, &data.grad_mask})
      for (const double value : gradient->values()) ASSERT_EQ(value, 0);
  });
}

/// Many rows add up to the one key, and with them any error of dP - delta.
TEST(CpuBackward, RowsThatSeeOneKeyHaveNoGradientOfScores) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (const double softcap : {0.0, 0.7})
      for (const std::int64_t dim : {1, 40}) {
        Case spec = shape(2, 297, 1, dim);  // the last rows of which are decoded
        spec.v_dim = 33;
        spec.dtype = dtype;
        spec.softcap = softcap;
        spec.mask = {.shape = MaskShape::kFull, .dtype = dtype};
        expect_no_gradient_of_scores(spec);
        spec.q_len = spec.kv_len = 100;
        spec.window = {.left = 0, .right = 0};
        expect_no_gradient_of_scores(spec);
      }
}

/// Their probability is 1, whatever the log-sum-exp rounds off their scores.
TEST(CpuBackward, RowsThatSeeOneKeyGiveItTheirWholeGradient) {
  for (const std::int64_t length : {1, 5, 100}) {
    Case spec = shape(2, length, length, 64);
    spec.window = {.left = 0, .right = 0};
    spec.scale = 50;
    SCOPED_TRACE(describe(spec));
    CaseData data(spec, 11);
    for_each_instruction_set([&] {
      run_both(data);
      EXPECT_EQ(data.grad_value.values(), data.grad_out.values());
    });
  }
}

/// `count` unit matrices. As gradients of the output they make those of the values probabilities.
std::vector<double> identities(std::int64_t count, std::int64_t size) {
  std::vector<double> values;
  for (std::int64_t n = 0; n < count * size * size; ++n)
    values.push_back(n / size % size == n % size ? 1 : 0);
  return values;
}

/// A log-sum-exp between 16 and 32 comes of two roundings by 2^-20 at most. Scores in another order
/// than the forward pass's would be off by more, as would its product with log2(e), rounded again.
TEST(CpuBackward, ProbabilitiesSumUpToOneAsNearAsTheLogSumExpAllows) {
  for (const std::int64_t kv_len : {8, 20, 90})
    for (const std::int64_t dim : {16, 32, 64, 200})
      for (const std::int64_t q_len : {1, 8, 33, 52}) {
        Case spec = shape(16, q_len, kv_len, dim);
        spec.v_dim = q_len;
        spec.scale = 7.2 / std::sqrt(dim);
        SCOPED_TRACE(describe(spec));
        CaseData data(spec, 11);
        data.grad_out.assign(identities(16, q_len));
        for_each_instruction_set([&] {
          run_both(data);
          EXPECT_LT(largest_error_of_sums(data), 0x1p-19 + 4e-7);
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

/// Scores of a mask that stands for minus infinity have no digits after the point.
TEST(CpuBackward, ProbabilitiesOfHugeScoresAreAtMostOne) {
  for (const std::int64_t q_len : {4, 33}) {
    Case spec = shape(2, q_len, 90, 64);
    spec.v_dim = q_len;
    spec.mask = {.shape = MaskShape::kMatrix, .dtype = DType::kFloat32};
    CaseData data(spec, 11);
    data.grad_out.assign(identities(2, q_len));
    for (const double value : {-1e9, -3e38}) {
      data.mask.fill(value);
      for_each_instruction_set([&] {
        run_both(data);
        for (const double p : data.grad_value.values()) ASSERT_LE(p, 1 + 1e-6) << value;
      });
    }
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

}  // namespace
}  // namespace sdpa::cases
