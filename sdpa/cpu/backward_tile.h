// SPDX-License-Identifier: MIT
#pragma once

// The five products of the backward pass, out of register tiles (tile.h):
//
//   multiply    T[key][query] = sum_d A[key][d] B^T[d][query]     lanes are queries:     S, dP
//   accumulate  C[row][d] += sum_n W[row][n] X[n][d]              lanes are dimensions:  dV, dK, dQ
//
// All operands are staged rows of floats, padded with zeros to whole vectors.
#include <cstdint>

#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

/// Operands of `accumulate`. W is [row][n], or [n][row] where `weight_row` is 1.
struct Accumulation {
  const float* weights;
  std::int64_t weight_row, weight_step;  ///< strides of W along rows and along n
  const float* x;
  float* sums;
  std::int64_t stride;  ///< of the rows of X and C
  int rows, steps;
};

/// Tile shapes for the gradients. Lanes are head dimensions, mostly multiples of 64: with 32
/// registers four vectors of lanes leave no remainder; six rows then fill the registers.
template <class S>
constexpr int kGradientColumns = S::kRows * S::kColumns >= 24 ? 4 : 2;

template <class S>
constexpr int gradient_rows(int columns) {
  constexpr int sums = S::kRows * S::kColumns >= 24 ? 24 : 12;
  return columns == 1 ? sums / 2 : sums / columns;
}

template <class S, int Rows, int Columns>
void accumulate_tile(const Accumulation& a, std::int64_t row, std::int64_t column) {
  Tile<S, Rows, Columns> tile;
  float* sums = a.sums + row * a.stride + column;
  load(tile, sums, a.stride);
  if (a.weight_row == 1)
    multiply_columns(tile, a.weights + row, a.weight_step, a.x + column, a.stride, a.steps);
  else
    multiply_rows(tile, a.weights + row * a.weight_row, a.weight_row, a.x + column, a.stride,
                  a.steps);
  store(tile, sums, a.stride);
}

template <class S, int Columns>
void accumulate_panel(const Accumulation& a, std::int64_t column) {
  constexpr int kRows = gradient_rows<S>(Columns);
  std::int64_t row = 0;
  for (; row + kRows <= a.rows; row += kRows) accumulate_tile<S, kRows, Columns>(a, row, column);
  for_row_pieces<4>(row, a.rows, [&](auto rows, std::int64_t start) {
    accumulate_tile<S, decltype(rows)::value, Columns>(a, start, column);
  });
}

/// C += W X, in panels of columns of nearly equal width.
template <class S>
void accumulate(const Accumulation& a) {
  constexpr int kMost = kGradientColumns<S>;
  const int vectors = static_cast<int>(a.stride / S::kLanes);
  for (int done = 0; done < vectors;) {
    const int panels = (vectors - done + kMost - 1) / kMost;
    const int width = (vectors - done + panels - 1) / panels;
    unroll<kMost>([&](auto n) SDPA_INLINE_LAMBDA {
      if (width == n + 1)
        accumulate_panel<S, n + 1>(a, static_cast<std::int64_t>(done) * S::kLanes);
    });
    done += width;
  }
}

/// The same sums without vectors, leaving out every zero weight: where X holds a NaN or an infinity
/// a weight of zero must not spread it.
template <class S>
void accumulate_visible(const Accumulation& a) {
  for (int row = 0; row < a.rows; ++row)
    for (int n = 0; n < a.steps; ++n) {
      const float weight = a.weights[row * a.weight_row + n * a.weight_step];
      if (weight == 0) continue;
      for (std::int64_t d = 0; d < a.stride; ++d)
        a.sums[row * a.stride + d] += weight * a.x[n * a.stride + d];
    }
}

/// Operands of `multiply`: keys [first_key, last_key) of A against one panel of lanes.
struct Product {
  const float* a;
  std::int64_t a_stride;
  const float* b;  ///< [depth][b_stride], at the panel's first lane
  std::int64_t b_stride;
  int depth, first_key, last_key;
};

/// T = A B^T for a panel of Columns vectors. Each register tile is handed to `finish(tile, key)`.
template <class S, int Columns, class Finish>
void multiply_panel(const Product& m, const Finish& finish) {
  for_row_pieces<S::kRows>(m.first_key, m.last_key, [&](auto rows, std::int64_t key) {
    Tile<S, decltype(rows)::value, Columns> tile;
    clear(tile);
    multiply_rows(tile, m.a + key * m.a_stride, m.a_stride, m.b, m.b_stride, m.depth);
    finish(tile, static_cast<int>(key));
  });
}

}  // namespace sdpa::cpu
