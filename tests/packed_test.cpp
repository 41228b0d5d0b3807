// SPDX-License-Identifier: MIT
//
// Packed sequences are what each of them is by itself, however they are scheduled.
#include "sdpa/packed.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

#include "sdpa/threads.h"

namespace sdpa {
namespace {

using Lengths = std::vector<std::int64_t>;

std::vector<std::int64_t> starts_of(const Lengths& lengths) {
  std::vector<std::int64_t> starts{0};
  for (std::int64_t length : lengths) starts.push_back(starts.back() + length);
  return starts;
}

/// [heads, total, dim], rows of all heads side by side, as users pack them.
struct PackedTensor {
  std::vector<float> values;
  TensorView view;

  PackedTensor(std::int64_t heads, std::int64_t total, std::int64_t dim, unsigned seed = 0)
      : values(static_cast<std::size_t>(heads * total * dim), std::nanf("")) {
    view = dense(values.data(), DType::kFloat32, {heads, total, dim});
    view.strides = {dim, heads * dim, 1};
    if (seed == 0) return;
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (float& value : values) value = normal(generator);
  }

  TensorView rows(std::int64_t first, std::int64_t last) const {
    TensorView part = view;
    part.data = static_cast<float*>(view.data) + first * view.strides[1];
    part.shape[1] = last - first;
    return part;
  }
};

/// One call with all its tensors.
struct Call {
  static constexpr std::int64_t kHeads = 4, kKvHeads = 2, kDim = 8, kValueDim = 12;

  Packing packing;
  PackedTensor query, key, value, grad_out, grad_lse, out, lse, grad_query, grad_key, grad_value;
  std::vector<float> sinks{0.5F, -1, 0, 2}, grad_sinks = std::vector<float>(kHeads);

  Call(const Lengths& q, const Lengths& k)
      : packing{starts_of(q), starts_of(k)},
        query(kHeads, packing.query_starts.back(), kDim, 1),
        key(kKvHeads, packing.key_starts.back(), kDim, 2),
        value(kKvHeads, packing.key_starts.back(), kValueDim, 3),
        grad_out(kHeads, packing.query_starts.back(), kValueDim, 4),
        grad_lse(kHeads, packing.query_starts.back(), 1, 5),
        out(kHeads, packing.query_starts.back(), kValueDim),
        lse(kHeads, packing.query_starts.back(), 1),
        grad_query(kHeads, packing.query_starts.back(), kDim),
        grad_key(kKvHeads, packing.key_starts.back(), kDim),
        grad_value(kKvHeads, packing.key_starts.back(), kValueDim) {}

  TensorView over_heads(std::vector<float>& values) {
    return dense(values.data(), DType::kFloat32, {kHeads});
  }

  ForwardTensors forward_tensors() {
    return {.query = query.view,
            .key = key.view,
            .value = value.view,
            .sinks = over_heads(sinks),
            .out = out.view,
            .lse = lse.view};
  }

  BackwardTensors backward_tensors() {
    return {.query = query.view,
            .key = key.view,
            .value = value.view,
            .sinks = over_heads(sinks),
            .out = out.view,
            .lse = lse.view,
            .grad_out = grad_out.view,
            .grad_lse = grad_lse.view,
            .grad_query = grad_query.view,
            .grad_key = grad_key.view,
            .grad_value = grad_value.view,
            .grad_sinks = over_heads(grad_sinks)};
  }

  BackwardTensors sequence(std::size_t n) {
    const std::int64_t q0 = packing.query_starts[n], q1 = packing.query_starts[n + 1];
    const std::int64_t k0 = packing.key_starts[n], k1 = packing.key_starts[n + 1];
    return {.query = query.rows(q0, q1),
            .key = key.rows(k0, k1),
            .value = value.rows(k0, k1),
            .sinks = over_heads(sinks),
            .out = out.rows(q0, q1),
            .lse = lse.rows(q0, q1),
            .grad_out = grad_out.rows(q0, q1),
            .grad_lse = grad_lse.rows(q0, q1),
            .grad_query = grad_query.rows(q0, q1),
            .grad_key = grad_key.rows(k0, k1),
            .grad_value = grad_value.rows(k0, k1),
            .grad_sinks = over_heads(grad_sinks)};
  }

  void run_packed(const Attributes& attributes) {
    forward_packed(forward_tensors(), packing, attributes);
    backward_packed(backward_tensors(), packing, attributes);
  }

  void run_one_by_one(Attributes attributes) {
    for (std::size_t n = 0; n + 1 < packing.query_starts.size(); ++n) {
      BackwardTensors t = sequence(n);
      const ForwardTensors in{.query = t.query,
                              .key = t.key,
                              .value = t.value,
                              .sinks = t.sinks,
                              .out = t.out,
                              .lse = t.lse};
      forward(in, attributes);
      backward(t, attributes);
      ++attributes.dropout.offset;
    }
  }
};

void expect_near(const std::vector<float>& found, const std::vector<float>& expected,
                 const char* what) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t n = 0; n < found.size(); ++n) {
    if (found[n] == expected[n]) continue;  // infinities too
    ASSERT_NEAR(found[n], expected[n], 2e-5F * (1 + std::abs(expected[n]))) << what << " " << n;
  }
}

void expect_same(const Call& found, const Call& expected) {
  expect_near(found.out.values, expected.out.values, "out");
  expect_near(found.lse.values, expected.lse.values, "lse");
  expect_near(found.grad_query.values, expected.grad_query.values, "the gradient of query");
  expect_near(found.grad_key.values, expected.grad_key.values, "the gradient of key");
  expect_near(found.grad_value.values, expected.grad_value.values, "the gradient of value");
  expect_near(found.grad_sinks, expected.grad_sinks, "the gradient of sinks");
}

/// Many short, one long among short, one alone, some without queries or keys.
std::vector<std::pair<Lengths, Lengths>> packings() {
  Lengths short_ones;
  for (std::int64_t n = 0; n < 60; ++n) short_ones.push_back(1 + n % 7);
  Lengths with_a_long_one = short_ones;
  with_a_long_one[30] = 700;
  return {{short_ones, short_ones},
          {with_a_long_one, with_a_long_one},
          {{300}, {450}},
          {{3, 0, 5, 20}, {4, 6, 0, 150}},
          {{40, 40, 40}, {40, 40, 40}}};
}

class Packed : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_thread_count(GetParam()); }

  void TearDown() override { set_thread_count(0); }
};

TEST_P(Packed, IsEachSequenceByItself) {
  const Attributes rich{.causal = Causal::kLowerRight,
                        .window = {20, -1},
                        .softcap = 3,
                        .dropout = {.probability = 0.3, .seed = 7, .offset = 2}};
  for (const auto& [q, k] : packings())
    for (const Attributes& attributes : {Attributes{}, rich}) {
      Call found(q, k), expected(q, k);
      found.run_packed(attributes);
      expected.run_one_by_one(attributes);
      expect_same(found, expected);
    }
}

TEST_P(Packed, RepeatsBitForBit) {
  for (const auto& [q, k] : packings()) {
    Call first(q, k), second(q, k);
    first.run_packed({});
    second.run_packed({});
    EXPECT_EQ(std::memcmp(first.grad_key.values.data(), second.grad_key.values.data(),
                          first.grad_key.values.size() * sizeof(float)),
              0);
    EXPECT_EQ(first.grad_sinks, second.grad_sinks);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, Packed, testing::Values(1, 2, 5));

/// The sentence of the error that a packing gets.
std::string refusal(const Packing& packing) {
  Call call({3, 4}, {3, 4});
  try {
    forward_packed(call.forward_tensors(), packing, {});
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(PackedErrors, NameTheArgument) {
  EXPECT_EQ(refusal({{0, 3}, {0, 3, 7}}), "query_starts must rise from 0 to the total length 7");
  EXPECT_EQ(refusal({{0, 3, 7}, {0, 8, 7}}), "key_starts must rise from 0 to the total length 7");
  EXPECT_EQ(refusal({{0, 7}, {0, 3, 7}}),
            "query_starts and key_starts must name the same number of sequences");
  EXPECT_EQ(refusal({{}, {0, 3, 7}}), "query_starts must rise from 0 to the total length 7");
}

TEST(PackedErrors, LeaveTheLoopAlive) {
  Call call({3, 4, 5, 6}, {3, 4, 5, 6});
  ForwardTensors t = call.forward_tensors();
  t.key.shape[2] = 7;
  EXPECT_THROW(forward_packed(t, call.packing, {}), std::invalid_argument);
}

}  // namespace
}  // namespace sdpa
