// SPDX-License-Identifier: MIT
//
// The oracle against values worked out by hand and against finite differences.
#include "sdpa/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/case_data.h"

namespace sdpa::cases {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// One query [1] and keys [0, ln 3] in float64: with scale 1 the probabilities are 1/4 and 3/4.
/// Values are [4, 8], so the output is 7.
struct ByHand {
  CaseData data;

  explicit ByHand(Case spec) : data(completed(std::move(spec)), 1) {
    data.query.assign(std::vector{1.0});
    data.key.assign(std::vector{0.0, std::log(3.0)});
    data.value.assign(std::vector{4.0, 8.0});
    data.grad_out.assign(std::vector{1.0});
  }

  static Case completed(Case spec) {
    spec.dtype = DType::kFloat64;
    spec.kv_len = 2;
    spec.scale = spec.scale.value_or(1);
    return spec;
  }

  double out() {
    reference::forward(data.problem, data.forward_tensors());
    return data.out.values()[0];
  }

  double lse() {
    out();
    return data.lse.values()[0];
  }

  void backward() { reference::backward(data.problem, data.backward_tensors()); }
};

TEST(Reference, SoftmaxOfTwoKeys) {
  ByHand call({});
  EXPECT_DOUBLE_EQ(call.out(), 7);
  EXPECT_DOUBLE_EQ(call.lse(), std::log(4.0));
}

TEST(Reference, GradientsOfTwoKeys) {
  ByHand call({});
  call.backward();
  // D = 7, so dS = (1/4)(4 - 7), (3/4)(8 - 7).
  EXPECT_NEAR(call.data.grad_query.values()[0], 0.75 * std::log(3.0), 1e-15);
  EXPECT_NEAR(call.data.grad_key.values()[0], -0.75, 1e-15);
  EXPECT_NEAR(call.data.grad_key.values()[1], 0.75, 1e-15);
  EXPECT_NEAR(call.data.grad_value.values()[0], 0.25, 1e-15);
  EXPECT_NEAR(call.data.grad_value.values()[1], 0.75, 1e-15);
}

TEST(Reference, ScaleMultipliesScores) {
  ByHand call({.scale = 2});  // weights 1 and 9
  EXPECT_NEAR(call.out(), 7.6, 1e-14);
  EXPECT_NEAR(call.lse(), std::log(10.0), 1e-15);
}

TEST(Reference, CausalityHidesLaterKeys) {
  EXPECT_DOUBLE_EQ(ByHand({.causal = Causal::kUpperLeft}).out(), 4);
  EXPECT_DOUBLE_EQ(ByHand({.causal = Causal::kLowerRight}).out(), 7);
}

TEST(Reference, WindowIsAroundTheAlignedPosition) {
  EXPECT_DOUBLE_EQ(ByHand({.window = {0, 0}}).out(), 4);
  EXPECT_DOUBLE_EQ(ByHand({.window = {0, 1}}).out(), 7);
  EXPECT_DOUBLE_EQ(ByHand({.causal = Causal::kLowerRight, .window = {0, -1}}).out(), 8);
}

TEST(Reference, MasksSelectOrAdd) {
  ByHand selected({.mask = {MaskShape::kFull, DType::kBool}});
  selected.data.mask.assign(std::vector{1.0, 0.0});
  EXPECT_DOUBLE_EQ(selected.out(), 4);
  ByHand biased({.mask = {MaskShape::kFull, DType::kFloat32}});
  biased.data.mask.assign(std::vector{0.0, -kInfinity});
  EXPECT_DOUBLE_EQ(biased.out(), 4);
  biased.data.mask.assign(std::vector{2.0, 2.0});
  EXPECT_DOUBLE_EQ(biased.out(), 7);
  EXPECT_DOUBLE_EQ(biased.lse(), std::log(4.0) + 2);
}

TEST(Reference, ASoftCapComesBeforeTheMask) {
  ByHand call({.mask = {MaskShape::kFull, DType::kFloat64}, .softcap = 0.5});
  call.data.mask.assign(std::vector{0.0, 100.0});
  EXPECT_NEAR(call.lse(), 0.5 * std::tanh(std::log(3.0) / 0.5) + 100, 1e-12);
}

TEST(Reference, ASinkIsALogitWithoutAValue) {
  ByHand call({.sinks = true});
  call.data.sinks.assign(std::vector{std::log(4.0)});  // weights 1, 3 and 4
  EXPECT_NEAR(call.out(), 3.5, 1e-15);
  EXPECT_NEAR(call.lse(), std::log(8.0), 1e-15);
  call.backward();
  EXPECT_NEAR(call.data.grad_sinks.values()[0], -0.5 * 3.5, 1e-15);
}

TEST(Reference, AnEmptyRowIsZero) {
  ByHand call({.mask = {MaskShape::kFull, DType::kBool}, .grad_lse = true});
  call.data.mask.assign(std::vector{0.0, 0.0});
  EXPECT_EQ(call.out(), 0);
  EXPECT_EQ(call.lse(), -kInfinity);
  call.backward();
  EXPECT_EQ(call.data.grad_query.values()[0], 0);
  EXPECT_EQ(call.data.grad_key.values()[1], 0);
  EXPECT_EQ(call.data.grad_value.values()[1], 0);
}

TEST(Reference, DropoutZeroesAndRescales) {
  ByHand call({.dropout = 0.5});
  const bool first = reference::is_kept(call.data.problem.dropout, 0, 0, 0);
  const bool second = reference::is_kept(call.data.problem.dropout, 0, 0, 1);
  EXPECT_NEAR(call.out(), (first ? 0.25 * 2 * 4 : 0) + (second ? 0.75 * 2 * 8 : 0), 1e-14);
  EXPECT_NEAR(call.lse(), std::log(4.0), 1e-15) << "the log-sum-exp is that without dropout";
  EXPECT_EQ(ByHand({.dropout = 1}).out(), 0);
}

/// The number whose gradients the backward pass gives: what a loss adds for this call.
double loss(const CaseData& data) {
  reference::forward(data.problem, data.forward_tensors());
  double sum = 0;
  const auto add = [&](const Tensor& result, const Tensor& gradient) {
    const std::vector<double> values = result.values(), weights = gradient.values();
    for (std::size_t n = 0; n < weights.size(); ++n)
      if (std::isfinite(values[n])) sum += values[n] * weights[n];
  };
  add(data.out, data.grad_out);
  add(data.lse, data.grad_lse);
  return sum;
}

/// Central differences of the loss in every element of `input`.
std::vector<double> differences(const CaseData& data, Tensor& input) {
  constexpr double kStep = 1e-5;
  const std::vector<double> values = input.values();
  std::vector<double> result;
  for (std::size_t n = 0; n < values.size(); ++n) {
    std::vector<double> moved = values;
    moved[n] = values[n] + kStep;
    input.assign(moved);
    const double above = loss(data);
    moved[n] = values[n] - kStep;
    input.assign(moved);
    result.push_back((above - loss(data)) / (2 * kStep));
  }
  input.assign(values);
  return result;
}

void expect_gradients_agree(const Case& spec) {
  SCOPED_TRACE(describe(spec));
  CaseData data(spec, 3);
  reference::backward(data.problem, data.backward_tensors());
  const auto compare = [&](const char* name, Tensor& input, const Tensor& gradient) {
    if (!gradient.view().is_present()) return;
    const std::vector<double> expected = differences(data, input), actual = gradient.values();
    ASSERT_EQ(expected.size(), actual.size()) << name;
    for (std::size_t n = 0; n < actual.size(); ++n)
      EXPECT_NEAR(actual[n], expected[n], 1e-8) << name << " element " << n;
  };
  compare("query", data.query, data.grad_query);
  compare("key", data.key, data.grad_key);
  compare("value", data.value, data.grad_value);
  compare("mask", data.mask, data.grad_mask);
  compare("sinks", data.sinks, data.grad_sinks);
}

TEST(Reference, GradientsAgreeWithDifferences) {
  const Case base{.dtype = DType::kFloat64,
                  .batch = 2,
                  .q_heads = 4,
                  .kv_heads = 2,
                  .q_len = 3,
                  .kv_len = 5,
                  .qk_dim = 3,
                  .v_dim = 2};
  for (unsigned features = 0; features < 64; ++features) {
    Case spec = base;
    spec.causal = features & 1 ? Causal::kLowerRight : Causal::kNone;
    if (features & 2) spec.window = {2, 1};
    spec.softcap = features & 4 ? 0.7 : 0;
    spec.sinks = (features & 8) != 0;
    spec.dropout = features & 16 ? 0.4 : 0;
    spec.grad_lse = (features & 32) != 0;
    if (features % 3 != 0)
      spec.mask = {features % 3 == 1 ? MaskShape::kPerHead : MaskShape::kKeys, DType::kFloat64,
                   MaskPattern::kRandom};
    expect_gradients_agree(spec);
  }
}

TEST(Reference, GradientsOfBroadcastMasksAreSums) {
  for (MaskShape shape :
       {MaskShape::kFull, MaskShape::kPerHead, MaskShape::kMatrix, MaskShape::kKeys})
    expect_gradients_agree({.dtype = DType::kFloat64,
                            .batch = 2,
                            .q_heads = 2,
                            .kv_heads = 1,
                            .q_len = 4,
                            .kv_len = 6,
                            .qk_dim = 3,
                            .v_dim = 5,
                            .mask = {shape, DType::kFloat64, MaskPattern::kSoft}});
}

}  // namespace
}  // namespace sdpa::cases
