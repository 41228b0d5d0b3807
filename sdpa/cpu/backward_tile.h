// SPDX-License-Identifier: MIT
#pragma once

// The five products of the backward pass, out of register tiles (tile.h):
//
//   multiply    T[key][query] = sum_d A[key][d] B^T[d][query]     lanes are queries:     S, dP
//   accumulate  C[row][d] += sum_n W[row][n] X[n][d]              lanes are dimensions:  dV, dK, dQ
//
// All operands are staged rows, padded with zeros to whole vectors. An Element is a float or a pair
// of bfloat16 (tile.h); depth and steps count Elements.
#include <cstdint>

#include "sdpa/cpu/beside.h"
#include "sdpa/cpu/stage.h"
#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

/// Operands of `accumulate`. W is [row][n], or [n][row] where `weight_row` is 1.
template <typename Element>
struct Accumulation {
  const Element* weights;
  std::int64_t weight_row, weight_step;  ///< strides of W along rows and along n
  const Element* x;
  std::int64_t x_stride;
  float* sums;
  std::int64_t stride;  ///< of the rows of C
  std::int64_t rows, steps;
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

template <class S, int Rows, int Columns, typename Element>
void accumulate_tile(const Accumulation<Element>& a, std::int64_t row, std::int64_t column) {
  Tile<S, Rows, Columns> tile;
  float* sums = a.sums + row * a.stride + column;
  clear(tile);
  if (a.weight_row == 1)
    multiply_columns(tile, a.weights + row, a.weight_step, a.x + column, a.x_stride, a.steps);
  else
    multiply_rows(tile, a.weights + row * a.weight_row, a.weight_row, a.x + column, a.x_stride,
                  a.steps);
  add(sums, a.stride, tile);
  store(tile, sums, a.stride);
}

template <class S, int Columns, typename Element>
void accumulate_panel(const Accumulation<Element>& a, std::int64_t column) {
  constexpr int kRows = gradient_rows<S>(Columns);
  std::int64_t row = 0;
  for (; row + kRows <= a.rows; row += kRows) accumulate_tile<S, kRows, Columns>(a, row, column);
  for_row_pieces<4>(row, a.rows, [&](auto rows, std::int64_t start) {
    accumulate_tile<S, decltype(rows)::value, Columns>(a, start, column);
  });
}

/// C += W X, in panels of columns of nearly equal width.
template <class S, typename Element>
void accumulate(const Accumulation<Element>& a) {
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
template <class S, typename Element>
void accumulate_visible(const Accumulation<Element>& a) {
  constexpr int kParts = kElementsPerWord<Element>;
  for (std::int64_t row = 0; row < a.rows; ++row)
    for (std::int64_t n = 0; n < a.steps * kParts; ++n) {
      const Element word = a.weights[row * a.weight_row + n / kParts * a.weight_step];
      const float weight = element_at(word, static_cast<int>(n % kParts));
      if (weight == 0) continue;
      for (std::int64_t d = 0; d < a.stride; ++d)
        a.sums[row * a.stride + d] +=
            weight * element_at(a.x[n / kParts * a.x_stride + d], static_cast<int>(n % kParts));
    }
}

/// T = A B^T for a panel of Columns vectors. Each register tile is handed to `finish(tile, key)`.
template <class S, int Columns, typename Element, class Finish>
void multiply_panel(const Product<Element>& m, const Finish& finish) {
  for_row_pieces<S::kRows>(m.first_key, m.last_key, [&](auto rows, std::int64_t key) {
    Tile<S, decltype(rows)::value, Columns> tile;
    clear(tile);
    alignas(64) float waiting[rows * Columns * S::kLanes];
    RowProduct<S, rows, Columns, Element>(m.a + key * m.a_stride, m.a_stride, m.b, m.b_stride)
        .run(tile, m.depth, m.piece, waiting, Columns * S::kLanes);
    finish(tile, static_cast<int>(key));
  });
}

}  // namespace sdpa::cpu
