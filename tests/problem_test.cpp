// SPDX-License-Identifier: MIT
#include "sdpa/problem.h"

#include <gtest/gtest.h>

namespace sdpa {
namespace {

Problem of_lengths(std::int64_t q_len, std::int64_t kv_len) {
  return {.batch = 1,
          .q_heads = 1,
          .kv_heads = 1,
          .q_len = q_len,
          .kv_len = kv_len,
          .qk_dim = 4,
          .v_dim = 2};
}

/// Visibility by its definition, one pair at a time.
bool sees(const Problem& p, std::int64_t row, std::int64_t key) {
  const std::int64_t position = p.causal == Causal::kLowerRight ? row + p.kv_len - p.q_len : row;
  if (p.causal != Causal::kNone && key > position) return false;
  if (p.window.left >= 0 && key < position - p.window.left) return false;
  return p.window.right < 0 || key <= position + p.window.right;
}

TEST(Problem, KeyRangesAreTheVisiblePairs) {
  for (std::int64_t q_len : {1, 3, 6})
    for (std::int64_t kv_len : {1, 4, 9})
      for (Causal causal : {Causal::kNone, Causal::kUpperLeft, Causal::kLowerRight})
        for (std::int64_t left : {-1, 0, 2, 20})
          for (std::int64_t right : {-1, 0, 1, 20}) {
            Problem problem = of_lengths(q_len, kv_len);
            problem.causal = causal;
            problem.window = {left, right};
            double pairs = 0;
            for (std::int64_t row = 0; row < q_len; ++row)
              for (std::int64_t key = 0; key < kv_len; ++key) {
                const bool in_range = key >= problem.first_key(row) && key < problem.last_key(row);
                EXPECT_EQ(in_range, sees(problem, row, key))
                    << to_string(problem) << " row " << row << " key " << key;
                pairs += in_range;
              }
            EXPECT_EQ(visible_pairs(problem), pairs) << to_string(problem);
          }
}

TEST(Problem, FlopsCountBothProducts) {
  EXPECT_DOUBLE_EQ(flops(of_lengths(3, 5), Pass::kForward), 2 * 15 * (4 + 2));
  EXPECT_DOUBLE_EQ(flops(of_lengths(3, 5), Pass::kBackward), 2.5 * 2 * 15 * (4 + 2));
}

TEST(Problem, TextNamesEveryFeature) {
  Problem problem = of_lengths(128, 256);
  EXPECT_EQ(to_string(problem), "float32 B1 H1 L128x256 D4/2");
  problem.q_heads = 8;
  problem.v_dim = 4;
  problem.causal = Causal::kLowerRight;
  problem.window = {5, -1};
  problem.mask = MaskKind::kBool;
  problem.softcap = 20;
  problem.has_sinks = true;
  problem.dropout.probability = 0.1;
  EXPECT_EQ(to_string(problem),
            "float32 B1 H8/1 L128x256 D4 causal(lower-right) window(5,-1) mask(bool, key padding) "
            "softcap=20 sinks dropout=0.1");
}

}  // namespace
}  // namespace sdpa
