// SPDX-License-Identifier: MIT
//
// NaN and infinity stay where they are seen: keys that are hidden from every query of their head
// contribute nothing, and queries never affect each other.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "sdpa/element.h"
#include "tests/conformance.h"

namespace sdpa::cases {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

Case padded(MaskSpec mask) {
  return {.batch = 2,
          .q_heads = 4,
          .kv_heads = 2,
          .q_len = 35,
          .kv_len = 150,
          .qk_dim = 24,
          .v_dim = 16,
          .mask = mask};
}

/// Both passes of every engine agree with the oracle, NaN included.
void expect_conforming(CaseData& data) {
  SCOPED_TRACE(describe(data.spec));
  const Expected oracle = expected(data);
  for (const double value : oracle.grad_query) ASSERT_FALSE(std::isnan(value));
  for (const Engine& engine : engines()) {
    const Forced forced(engine);
    for (const std::string& sentence : check(*engine.backend, data, oracle).failures)
      ADD_FAILURE() << engine.label() << ": " << sentence;
  }
}

/// Cases whose last 50 keys nobody sees.
std::vector<Case> padded_cases() {
  std::vector<Case> list;
  for (DType mask : {DType::kBool, DType::kFloat32})
    for (MaskShape shape : {MaskShape::kKeys, MaskShape::kMatrix, MaskShape::kPerHead})
      list.push_back(padded({shape, mask, MaskPattern::kTail}));
  Case causal = padded({});
  causal.causal = Causal::kUpperLeft;
  list.push_back(causal);
  Case window = padded({});
  window.window.right = 20;
  list.push_back(window);
  Case decode = padded({MaskShape::kKeys, DType::kBool, MaskPattern::kTail});
  decode.q_len = 1;
  list.push_back(decode);
  return list;
}

TEST(Isolation, HiddenKeysContributeNothing) {
  for (Case spec : padded_cases())
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
      for (double poison : {kNaN, kInfinity}) {
        spec.dtype = dtype;
        CaseData data(spec, 3);
        fill_rows(data.key.view(), 100, 150, poison);
        fill_rows(data.value.view(), 100, 150, poison);
        expect_conforming(data);
      }
}

TEST(Isolation, AFullyHiddenHeadIsZeroWhateverItHolds) {
  for (std::int64_t q_len : {1, 35}) {
    Case spec = padded({MaskShape::kMatrix, DType::kBool, MaskPattern::kAll});
    spec.q_len = q_len;
    CaseData data(spec, 3);
    fill_rows(data.key.view(), 0, 150, kNaN);
    fill_rows(data.value.view(), 0, 150, kNaN);
    expect_conforming(data);
  }
}

/// Rows of a tensor that are not `row`: whether each is as expected, NaN never.
void expect_other_rows_close(const Engine& engine, const char* what, const Tensor& tensor,
                             const std::vector<double>& expected, std::int64_t row) {
  const auto& shape = tensor.view().shape;
  const std::vector<double> actual = tensor.values();
  for (std::size_t n = 0; n < actual.size(); ++n) {
    const auto index = static_cast<std::int64_t>(n) / shape[3] % shape[2];
    if (index == row || actual[n] == expected[n]) continue;
    ASSERT_NEAR(actual[n], expected[n], 1e-4)
        << engine.label() << ": " << what << " of row " << index;
  }
}

TEST(Isolation, QueriesDoNotAffectEachOther) {
  constexpr std::int64_t kRow = 6;
  for (Causal causal : {Causal::kNone, Causal::kUpperLeft}) {
    Case spec = padded({MaskShape::kPerHead, DType::kBool, MaskPattern::kRandom});
    spec.causal = causal;
    CaseData data(spec, 3);
    const Expected clean = expected(data);
    fill_rows(data.query.view(), kRow, kRow + 1, kNaN);
    for (const Engine& engine : engines()) {
      const Forced forced(engine);
      data.reset_outputs();
      engine.backend->forward(data.problem, data.forward_tensors());
      engine.backend->backward(data.problem, data.backward_tensors());
      expect_other_rows_close(engine, "out", data.out, clean.out, kRow);
      expect_other_rows_close(engine, "lse", data.lse, clean.lse, kRow);
      expect_other_rows_close(engine, "grad_query", data.grad_query, clean.grad_query, kRow);
      EXPECT_TRUE(std::isnan(read(data.out.view(), 0, 0, kRow, 0))) << engine.label();
    }
  }
}

TEST(Isolation, ANaNIsSeenByThoseWhoSeeIt) {
  Case spec = padded({});
  spec.causal = Causal::kUpperLeft;
  for (Tensor CaseData::* input : {&CaseData::key, &CaseData::value}) {
    CaseData data(spec, 3);
    fill_rows((data.*input).view(), 20, 21, kNaN);
    for (const Engine& engine : engines()) {
      const Forced forced(engine);
      data.reset_outputs();
      engine.backend->forward(data.problem, data.forward_tensors());
      for (std::int64_t row = 20; row < 35; ++row)
        EXPECT_TRUE(std::isnan(read(data.out.view(), 1, 3, row, 5)))
            << engine.label() << " row " << row;
      for (std::int64_t row = 0; row < 20; ++row)
        EXPECT_FALSE(std::isnan(read(data.lse.view(), 1, 3, row, 0)))
            << engine.label() << " row " << row;
    }
  }
}

TEST(Isolation, LargeScoresDoNotOverflow) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    Case spec = padded({});
    spec.dtype = dtype;
    spec.scale = 1;
    CaseData data(spec, 3);
    std::vector<double> keys = data.key.values();
    for (double& key : keys) key *= 1000;
    data.key.assign(keys);
    for (const Engine& engine : engines()) {
      const Forced forced(engine);
      data.reset_outputs();
      engine.backend->forward(data.problem, data.forward_tensors());
      engine.backend->backward(data.problem, data.backward_tensors());
      for (const Tensor* output : {&data.out, &data.lse, &data.grad_key, &data.grad_value})
        for (double value : output->values()) ASSERT_TRUE(std::isfinite(value)) << engine.label();
    }
  }
}

}  // namespace
}  // namespace sdpa::cases
