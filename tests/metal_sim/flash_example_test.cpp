// SPDX-License-Identifier: MIT
// The small flash attention: right in all types and orders; each barrier that it lacks is noticed.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "sim.h"

namespace {

constexpr int kDim = 64;

struct Params {
  int q_len, kv_len;
  float scale;
};

std::vector<float> random_values(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

struct Problem {
  int heads = 2;
  Params params{64, 96, 0.125f};
  std::vector<float> q = random_values(size_t(heads) * 64 * kDim, 7);
  std::vector<float> k = random_values(size_t(heads) * 96 * kDim, 8);
  std::vector<float> v = random_values(size_t(heads) * 96 * kDim, 9);
  std::vector<float> o = std::vector<float>(q.size(), NAN);
};

double expected(const Problem& p, int head, int row, int column) {
  const float* q = &p.q[size_t((head * p.params.q_len + row) * kDim)];
  double sum = 0, weighted = 0;
  for (int key = 0; key < p.params.kv_len; key++) {
    const size_t at = size_t((head * p.params.kv_len + key) * kDim);
    double score = 0;
    for (int d = 0; d < kDim; d++) score += double(q[d]) * p.k[at + size_t(d)];
    const double weight = std::exp(score * p.params.scale);
    sum += weight;
    weighted += weight * p.v[at + size_t(column)];
  }
  return weighted / sum;
}

sim::Result run(Problem& p, const std::string& name, sim::Options options = {}) {
  const auto bytes = [](const std::vector<float>& v) { return v.size() * sizeof(float); };
  using Kind = sim::Binding::Kind;
  return sim::run({.function = name,
                   .bindings = {{Kind::kBuffer, 0, p.q.data(), bytes(p.q)},
                                {Kind::kBuffer, 1, p.k.data(), bytes(p.k)},
                                {Kind::kBuffer, 2, p.v.data(), bytes(p.v)},
                                {Kind::kBuffer, 3, p.o.data(), bytes(p.o)},
                                {Kind::kBytes, 4, &p.params, sizeof(p.params)}},
                   .grid = {unsigned(p.params.q_len / 8), unsigned(p.heads)},
                   .group = {32}},
                  options);
}

double largest_error(const Problem& p) {
  double largest = 0;
  for (int head = 0; head < p.heads; head++)
    for (int row = 0; row < p.params.q_len; row++)
      for (int column = 0; column < kDim; column++) {
        const float got = p.o[size_t((head * p.params.q_len + row) * kDim + column)];
        const double error = std::abs(got - expected(p, head, row, column));
        if (!(error <= largest)) largest = error;
      }
  return largest;
}

TEST(FlashExample, IsRightInEveryOrder) {
  for (uint64_t seed : {0, 1, 2}) {
    Problem problem;
    const sim::Result result = run(problem, "flash_example_float", {.seed = seed});
    EXPECT_TRUE(result.ok()) << result.faults.at(0);
    EXPECT_LT(largest_error(problem), 5e-6);
  }
}

TEST(FlashExample, NoticesEachMissingBarrier) {
  for (int barrier = 1; barrier <= 4; barrier++) {
    Problem problem;
    const std::string name = "flash_example_float_without_barrier_" + std::to_string(barrier);
    const sim::Result result = run(problem, name);
    ASSERT_FALSE(result.ok()) << name;
    EXPECT_NE(result.faults[0].find("race"), std::string::npos) << result.faults[0];
  }
}

}  // namespace
