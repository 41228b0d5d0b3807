// SPDX-License-Identifier: MIT
#pragma once

// How many terms of a float32 product are summed up in one go. The rounding of each is that of the
// sum so far, so that two halves, added up, are 0.7 times as far from the exact sum as one chain
// (computed, and so it is measured where scores are large: outputs of 512 queries and keys, D128,
// from 0.96 to 0.68 times torch's distance from double precision).
//
// Another piece costs a tile 24 stores and 24 additions: nothing that shows in the forward pass at
// D64, 0.5 % at D128, 1 % in the backward pass; quarters 2 to 3 % (one Zen 4 core).

#include "sdpa/cpu/lanes.h"
#include "sdpa/problem.h"

namespace sdpa::cpu {

constexpr std::int64_t kSmallPiece = 8;

/// Torch sums up the products of few keys in many parts; they take no time either way.
__attribute__((always_inline)) inline bool has_few_keys(const Problem& problem) {
  return problem.kv_len < 12;
}

__attribute__((always_inline)) inline bool is_short(std::int64_t len) { return len <= 32; }

/// Whether scores of normal queries and keys have a variance above 2. A score's rounding is a
/// factor of its probability.
__attribute__((always_inline)) inline bool has_large_scores(const Problem& problem) {
  return problem.scale * problem.scale * static_cast<double>(problem.qk_dim) > 2;
}

/// Of a score's dimensions. Both passes sum up in the same order: the log-sum-exp of the one is
/// that of the other's scores. The fewer the keys, the more of an output's distance is that of its
/// scores (33 x 64, D32, with a mask: outputs from 1.01 to 0.88 times torch's distance from double
/// precision); with more keys than half a block halves of narrow heads would cost 4 %.
__attribute__((always_inline)) inline std::int64_t score_piece(const Problem& problem) {
  if (problem.dtype != DType::kFloat32) return problem.qk_dim;  // 16 bits round more than a sum
  if (problem.qk_dim <= 16) return has_few_keys(problem) ? kSmallPiece / 2 : kSmallPiece;
  if (has_few_keys(problem)) return kSmallPiece;
  const bool halves_narrow = problem.kv_len <= kKeyBlock / 2 || has_large_scores(problem);
  if (problem.qk_dim <= 32) return halves_narrow ? 2 * kSmallPiece : 32;
  return problem.qk_dim <= 64 ? 32 : 64;
}

/// Of the keys whose weighted values are an output. Torch sums up narrow heads in more parts (128
/// queries and keys, D32: from 1.01 to 0.89 times torch's distance from double precision).
__attribute__((always_inline)) inline std::int64_t key_piece(const Problem& problem) {
  return problem.dtype == DType::kFloat32 && problem.v_dim <= 32 ? kKeyBlock / 2 : kKeyBlock;
}

/// Of the dimensions of dO V^T, whose error is not exponentiated. A whole fraction of kKeyStep. (33
/// x 16, D32, with a mask: dQ from 1.01 to 0.92 times torch's distance from double precision.)
__attribute__((always_inline)) inline std::int64_t grad_piece(const Problem& problem) {
  if (has_few_keys(problem) || problem.v_dim <= 16) return kSmallPiece;
  if (!is_short(problem.kv_len)) return 64;
  return problem.v_dim <= 32 ? 2 * kSmallPiece : 4 * kSmallPiece;
}

/// Of the rows whose products with a key's weights are its gradients. Torch has fewer in a sum for
/// few keys and narrow heads, and sums up a group's heads one by one (16 queries and keys, D16,
/// four heads on one, one Granite Rapids core: dV from 1.22 to 1.01 times torch's distance from
/// double precision; 64 queries and 512 keys, D32, a mask: dK from 1.04 to 0.99).
__attribute__((always_inline)) inline std::int64_t row_piece(const Problem& problem) {
  const bool has_groups = problem.group() > 1;
  if (has_few_keys(problem) || (problem.q_len < 12 && has_groups)) return kSmallPiece;
  if (is_short(problem.kv_len) && problem.q_len <= 16) return kSmallPiece;
  if (is_short(problem.kv_len) || (is_short(problem.q_len) && has_groups)) return 2 * kSmallPiece;
  if (problem.v_dim > 32) return kKeyBlock;
  constexpr std::int64_t kFewRows = 7 * kSmallPiece;  // a window of 7 x 7 in one piece
  return problem.v_dim <= 16 || problem.q_len > kFewRows ? 4 * kSmallPiece : kFewRows;
}

}  // namespace sdpa::cpu
