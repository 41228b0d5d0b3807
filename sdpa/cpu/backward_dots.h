// SPDX-License-Identifier: MIT
#pragma once

// The last few rows of a head, whose scores the forward pass made as decode does: by dot products,
// with dimensions as lanes (decode_tile.h). They are made in the same way here. Another order of
// the same sum differs by more than the log-sum-exp does, so that probabilities would not sum up to
// 1: float32, eight queries, D64, scale 1: dV was 3.4 times as far from double precision as
// torch's, dQ 1.8 times. It is faster as well, since such rows do not fill a vector of lanes.
#include "sdpa/cpu/backward_operands.h"
#include "sdpa/cpu/decode_plan.h"
#include "sdpa/cpu/decode_tile.h"

namespace sdpa::cpu {

/// The rows of queries or of output gradients that stand in the lanes of one panel.
template <typename Element>
struct PanelRows {
  const Element* data;
  std::int64_t stride, columns;
  std::int64_t piece;  ///< columns that are summed up in one go
  int count;
  const Element* lanes;  ///< transposed; of floats, times `factor`
  float factor;
};

/// T = factor * A B^T for keys [first, last) of A against the rows B of a panel of Columns vectors.
/// Each register tile is handed to `finish(tile, key)`, as by `multiply_panel`.
template <class S, int Columns, class Finish>
void dot_panel(const Operand<float>& keys, const PanelRows<float>& rows, int first, int last,
               const Finish& finish) {
  constexpr int kWidth = Columns * S::kLanes;
  constexpr int kStride = kKeyStep + kMaxLanes;  // dot_rows writes that far
  float scores[kMaxDecodeRows][kStride], lanes[kKeyStep * kWidth];
  const DecodeRows<float> all{keys.rows, keys.row_stride, rows.columns};
  for_row_pieces<4>(0, rows.count, [&](auto count, std::int64_t row) {
    dot_rows<S, count>(all, first, last, rows.data + row * rows.stride, rows.stride, scores[row],
                       kStride);
  });
  const float* row[kWidth];
  for (int n = 0; n < kWidth; ++n) row[n] = n < rows.count ? scores[n] + first : nullptr;
  transpose_in<S>(row, kWidth, last - first, rows.factor, lanes + first * kWidth, kWidth);
  for_row_pieces<S::kRows>(first, last, [&](auto count, std::int64_t key) {
    Tile<S, decltype(count)::value, Columns> tile;
    load(tile, lanes + key * kWidth, kWidth);
    finish(tile, static_cast<int>(key));
  });
}

/// The dot products of rows with rows of their own, each summed up as by `dot_rows`.
template <class S>
void dot_each(const PanelRows<float>& rows, const float* const* others, float* to) {
  for (int first = 0; first < rows.count; first += S::kLanes) {
    typename S::Vec sums[S::kLanes];
    for (int i = 0; i < S::kLanes; ++i) {
      sums[i] = S::zero();
      if (first + i >= rows.count) continue;
      const float* row = rows.data + (first + i) * rows.stride;
      for_vectors<S>(
          static_cast<int>(rows.columns),
          [&](int d) SDPA_INLINE_LAMBDA {
            sums[i] = S::multiply_add(S::load(row + d), S::load(others[first + i] + d), sums[i]);
          },
          [&](int d, int count) SDPA_INLINE_LAMBDA {
            sums[i] = S::multiply_add(S::load_part(row + d, count),
                                      S::load_part(others[first + i] + d, count), sums[i]);
          });
    }
    S::store(to + first, S::sum_rows(sums));
  }
}

/// 2^(score - lse - rest) with what rounding takes off the difference: most of the error, where one
/// query sees many keys (dV, 1100 keys, D64: from 1.07 to 0.74 times torch's distance from
/// double precision).
template <class S>
SDPA_INLINE typename S::Vec exact_probability(typename S::Vec score, typename S::Vec lse,
                                              typename S::Vec rest) {
  const auto t = S::sub(score, lse), taken = S::sub(score, t);
  auto lost = S::add(S::sub(score, S::add(t, taken)), S::sub(taken, lse));
  lost = S::keep(S::is_finite(lost), S::sub(lost, rest));  // a hidden key's score is -infinity
  const auto p = exp2<S, Rounding::kExact>(t);
  return S::multiply_add(p, S::mul(lost, S::broadcast(kLn2)), p);
}

}  // namespace sdpa::cpu
