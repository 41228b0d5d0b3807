// SPDX-License-Identifier: MIT
//
// The same call gives the same bits, and dropout takes the same pairs everywhere.
#include <gtest/gtest.h>

#include <cmath>

#include "sdpa/attention.h"
#include "sdpa/reference.h"
#include "sdpa/threads.h"
#include "tests/conformance.h"

namespace sdpa::cases {
namespace {

class ThreadCount {
 public:
  explicit ThreadCount(int count) { set_thread_count(count); }

  ~ThreadCount() { set_thread_count(0); }
};

/// All outputs of both passes, one after the other.
std::vector<double> outputs(const Engine& engine, CaseData& data) {
  const Forced forced(engine);
  data.reset_outputs();
  engine.backend->forward(data.problem, data.forward_tensors());
  engine.backend->backward(data.problem, data.backward_tensors());
  std::vector<double> all;
  for (const Tensor* each : {&data.out, &data.lse, &data.grad_query, &data.grad_key,
                             &data.grad_value, &data.grad_mask, &data.grad_sinks})
    for (double value : each->values()) all.push_back(value);
  return all;
}

std::vector<Case> varied_cases() {
  Case base{.batch = 2,
            .q_heads = 4,
            .kv_heads = 2,
            .q_len = 150,
            .kv_len = 300,
            .qk_dim = 24,
            .v_dim = 40,
            .mask = {MaskShape::kFull, DType::kFloat32, MaskPattern::kRandom},
            .sinks = true,
            .dropout = 0.2};
  Case few_heads = base;
  few_heads.batch = few_heads.q_heads = few_heads.kv_heads = 1;
  Case decode = few_heads;
  decode.q_len = 1;
  decode.kv_len = 3000;
  Case few_rows = decode;
  few_rows.q_len = 40;
  std::vector<Case> list{base, few_heads, decode, few_rows};
  for (std::size_t n = 0; n < 4; ++n) {
    list.push_back(list[n]);
    list.back().dtype = DType::kBFloat16;
  }
  return list;
}

TEST(Determinism, RunToRun) {
  for (const Case& spec : varied_cases()) {
    CaseData data(spec, 3);
    for (const Engine& engine : engines())
      for (int threads : {1, 3}) {
        const ThreadCount count(threads);
        const std::vector<double> first = outputs(engine, data);
        for (int repeat = 0; repeat < 3; ++repeat)
          ASSERT_EQ(outputs(engine, data), first)
              << engine.label() << ": " << describe(spec) << ", " << threads << " threads";
      }
  }
}

TEST(Determinism, AcrossThreadCounts) {
  for (const Case& spec : varied_cases()) {
    CaseData data(spec, 3);
    for (const Engine& engine : engines()) {
      std::vector<double> first;
      for (int threads : {1, 2, 3, 5}) {
        const ThreadCount count(threads);
        const std::vector<double> all = outputs(engine, data);
        if (first.empty()) first = all;
        ASSERT_EQ(all, first) << engine.label() << ": " << describe(spec) << ", " << threads
                              << " threads";
      }
    }
  }
}

/// Dropout alone: every score is 0, so that every probability is the same.
Case dropout_case(DType dtype, std::int64_t q_len, std::int64_t kv_len) {
  return {.dtype = dtype,
          .batch = 2,
          .q_heads = 3,
          .kv_heads = 1,
          .q_len = q_len,
          .kv_len = kv_len,
          .qk_dim = 8,
          .v_dim = std::max(q_len, kv_len),
          .mask = {MaskShape::kPerHead, dtype, MaskPattern::kSoft},
          .dropout = 0.4};
}

/// Ones on the diagonal of each head's rows and columns.
void assign_identity(Tensor& tensor) {
  const TensorView& view = tensor.view();
  std::vector<double> values;
  for (std::int64_t n = 0; n < view.element_count(); ++n)
    values.push_back(n / view.shape[3] % view.shape[2] == n % view.shape[3] ? 1 : 0);
  tensor.assign(values);
}

void zero_scores(CaseData& data) {
  data.query.fill(0);
  data.mask.fill(0);
}

/// Calls `check(batch_head, b, h, query, key)` for every pair of a case.
template <typename Check>
void for_each_pair(const Case& s, const Check& check) {
  for (std::int64_t b = 0; b < s.batch; ++b)
    for (std::int64_t h = 0; h < s.q_heads; ++h)
      for (std::int64_t query = 0; query < s.q_len; ++query)
        for (std::int64_t key = 0; key < s.kv_len; ++key) check(b * s.q_heads + h, query, key);
}

/// Forward: values are the identity, so that out[query][key] is the probability after dropout.
void expect_forward_mask(const Engine& engine, CaseData& data) {
  zero_scores(data);
  assign_identity(data.value);
  data.reset_outputs();
  engine.backend->forward(data.problem, data.forward_tensors());
  const std::vector<double> out = data.out.values();
  const Case& s = data.spec;
  for_each_pair(s, [&](std::int64_t batch_head, std::int64_t query, std::int64_t key) {
    const auto at = static_cast<std::size_t>((batch_head * s.q_len + query) * s.v_dim + key);
    ASSERT_EQ(out[at] != 0, reference::is_kept(data.problem.dropout, batch_head, query, key))
        << engine.label() << ": " << describe(s) << " head " << batch_head << " query " << query
        << " key " << key;
  });
}

/// Backward: with ones for values and a gradient of ones, a pair's dS is above or below zero as it
/// was kept or not; dS is the gradient of an additive mask.
void expect_backward_mask(const Engine& engine, CaseData& data) {
  zero_scores(data);
  data.value.fill(1);
  data.grad_out.fill(1);
  data.reset_outputs();
  engine.backend->forward(data.problem, data.forward_tensors());
  engine.backend->backward(data.problem, data.backward_tensors());
  const std::vector<double> gradient = data.grad_mask.values();
  const Case& s = data.spec;
  for_each_pair(s, [&](std::int64_t batch_head, std::int64_t query, std::int64_t key) {
    const auto at = static_cast<std::size_t>((batch_head * s.q_len + query) * s.kv_len + key);
    ASSERT_EQ(gradient[at] > 0, reference::is_kept(data.problem.dropout, batch_head, query, key))
        << engine.label() << ": " << describe(s) << " head " << batch_head << " query " << query
        << " key " << key;
  });
}

/// Backward by its other product: with the identity as gradient of the output, dV[key][query] of
/// one head is the probability after dropout.
void expect_value_gradient_mask(const Engine& engine, CaseData& data) {
  zero_scores(data);
  assign_identity(data.grad_out);
  data.reset_outputs();
  engine.backend->forward(data.problem, data.forward_tensors());
  engine.backend->backward(data.problem, data.backward_tensors());
  const std::vector<double> gradient = data.grad_value.values();
  const Case& s = data.spec;
  for_each_pair(s, [&](std::int64_t batch_head, std::int64_t query, std::int64_t key) {
    const auto at = static_cast<std::size_t>((batch_head * s.kv_len + key) * s.v_dim + query);
    ASSERT_EQ(gradient[at] != 0, reference::is_kept(data.problem.dropout, batch_head, query, key))
        << engine.label() << ": " << describe(s) << " head " << batch_head << " query " << query
        << " key " << key;
  });
}

TEST(DropoutMask, IsTheOraclesBitForBit) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (const auto& [q_len, kv_len] :
         {std::pair<std::int64_t, std::int64_t>{1, 500}, {3, 131}, {70, 129}, {200, 67}}) {
      Case shared = dropout_case(dtype, q_len, kv_len);
      Case own = shared;
      own.kv_heads = own.q_heads;
      CaseData grouped(shared, 99), separate(own, 99);
      for (const Engine& engine : engines()) {
        const Forced forced(engine);
        expect_forward_mask(engine, grouped);
        expect_backward_mask(engine, grouped);
        expect_value_gradient_mask(engine, separate);
      }
    }
}

TEST(DropoutMask, SplittingACallDoesNotChangeIt) {
  // Two batch dimensions whose strides do not merge: the door runs several problems.
  constexpr std::int64_t kOuter = 3, kInner = 2, kHeads = 2, kLength = 20, kDim = 20;
  std::vector<float> zeros(4096), identity(4096), out(kOuter * kInner * kHeads * kLength * kDim);
  for (std::size_t n = 0; n < kLength; ++n) identity[n * kDim + n] = 1;
  TensorView query = dense(zeros.data(), DType::kFloat32, {kOuter, kInner, kHeads, kLength, kDim});
  query.strides = {100, 4, 16, 1, 1};
  TensorView value = query;
  value.data = identity.data();
  value.strides = {0, 0, 0, kDim, 1};
  const TensorView result =
      dense(out.data(), DType::kFloat32, {kOuter, kInner, kHeads, kLength, kDim});
  const Attributes attributes{.dropout = {.probability = 0.3, .seed = 11, .offset = 4}};
  forward({.query = query, .key = query, .value = value, .out = result}, attributes);
  for (std::int64_t head = 0; head < kOuter * kInner * kHeads; ++head)
    for (std::int64_t row = 0; row < kLength; ++row)
      for (std::int64_t key = 0; key < kLength; ++key)
        ASSERT_EQ(out[static_cast<std::size_t>((head * kLength + row) * kDim + key)] != 0,
                  reference::is_kept(attributes.dropout, head, row, key))
            << "head " << head << " query " << row << " key " << key;
}

}  // namespace
}  // namespace sdpa::cases
