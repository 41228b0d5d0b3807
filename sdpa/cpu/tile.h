// SPDX-License-Identifier: MIT
#pragma once

// The register tile and its two products. A tile holds Rows x Columns vectors; each step of depth
// loads Columns vectors of lanes, broadcasts one scalar a row and does Rows * Columns
// multiply-adds:
//
//   multiply_rows      tile[i][j] += sum_n rows[i * row_stride + n] * lanes[n][j]
//                      scores: rows are keys read in place, n runs over the head dimension, lanes
//                      are queries; or gradients: rows are P^T, n runs over queries, lanes are dims
//   multiply_columns   tile[i][j] += sum_n columns[n * column_stride + i] * lanes[n][j]
//                      output: columns are values read in place, n runs over keys, lanes are
//                      queries
//
// An Element is a float, or two 16-bit floats where the instruction set has a dot product of pairs.

#include "sdpa/cpu/simd.h"

namespace sdpa::cpu {

template <class S, int Rows, int Columns>
struct Tile {
  typename S::Vec v[Rows][Columns];
};

/// Calls `function(i, j, vector)` for each vector of a tile.
template <class S, int Rows, int Columns, class Function>
SDPA_INLINE void for_each(Tile<S, Rows, Columns>& tile, const Function& function) {
  unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA {
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA { function(i, j, tile.v[i][j]); });
  });
}

template <class S, int Rows, int Columns>
SDPA_INLINE void clear(Tile<S, Rows, Columns>& tile) {
  for_each(tile, [](auto, auto, typename S::Vec& x) SDPA_INLINE_LAMBDA { x = S::zero(); });
}

template <class S, int Rows, int Columns>
SDPA_INLINE void scale(Tile<S, Rows, Columns>& tile, float factor) {
  const auto by = S::broadcast(factor);
  for_each(tile, [&](auto, auto, typename S::Vec& x) SDPA_INLINE_LAMBDA { x = S::mul(x, by); });
}

template <class S, int Rows, int Columns>
SDPA_INLINE void load(Tile<S, Rows, Columns>& tile, const float* from, std::int64_t stride) {
  for_each(tile, [&](auto i, auto j, typename S::Vec& x)
                     SDPA_INLINE_LAMBDA { x = S::load(from + i * stride + j * S::kLanes); });
}

template <class S, int Rows, int Columns>
SDPA_INLINE void store(const Tile<S, Rows, Columns>& tile, float* to, std::int64_t stride) {
  unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA {
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
      S::store(to + i * stride + j * S::kLanes, tile.v[i][j]);
    });
  });
}

/// tile += what lies in memory.
template <class S, int Rows, int Columns>
SDPA_INLINE void add(const float* from, std::int64_t stride, Tile<S, Rows, Columns>& tile) {
  for_each(tile, [&](auto i, auto j, typename S::Vec& x) SDPA_INLINE_LAMBDA {
    x = S::add(S::load(from + i * stride + j * S::kLanes), x);
  });
}

/// Whether all of a tile is finite: 0 * x is not zero where x is not.
template <class S, int Rows, int Columns>
SDPA_INLINE bool is_finite(const Tile<S, Rows, Columns>& tile) {
  auto total = S::zero();
  unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
    auto sum = S::zero();
    unroll<Rows>([&](auto i)
                     SDPA_INLINE_LAMBDA { sum = S::multiply_add(tile.v[i][j], S::zero(), sum); });
    total = S::add(total, sum);
  });
  return S::to_bits(S::is_finite(total)) == (1u << S::kLanes) - 1u;
}

/// Calls `step` `count` times, four in a row: where a loop is long, the processor does not foresee
/// its end (forward, one Zen 4 core: 0.5 to 1 %; eight in a row: no gain).
template <class Step>
SDPA_INLINE void repeat(std::int64_t count, const Step& step) {
  for (; count >= 4; count -= 4) unroll<4>([&](auto) SDPA_INLINE_LAMBDA { step(); });
  for (; count > 0; --count) step();
}

/// multiply_rows, step by step.
template <class S, int Rows, int Columns, typename Element>
class RowProduct {
 public:
  SDPA_INLINE RowProduct(const Element* rows, std::int64_t row_stride, const Element* lanes,
                         std::int64_t lane_stride)
      : lanes_(lanes), lane_stride_(lane_stride) {
    unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA { rows_[i] = rows + i * row_stride; });
  }

  SDPA_INLINE void step(Tile<S, Rows, Columns>& tile) {
    decltype(S::load(lanes_)) lane[Columns];
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA { lane[j] = S::load(lanes_ + j * S::kLanes); });
    unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA {
      const auto scalar = S::broadcast(rows_[i][done_]);
      unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
        tile.v[i][j] = S::multiply_add(scalar, lane[j], tile.v[i][j]);
      });
    });
    ++done_;
    lanes_ += lane_stride_;
  }

  /// The steps up to `depth`, in pieces that are summed up one by one: the rounding of each step is
  /// that of the sum so far. `waiting` is room for the tile where it has more than one piece. One
  /// loop for all pieces: a second one, and the compiler keeps its sums in memory.
  SDPA_INLINE void run(Tile<S, Rows, Columns>& tile, std::int64_t depth, std::int64_t piece,
                       float* waiting, std::int64_t stride) {
    for (std::int64_t end = piece;; end += piece) {
      run_to(tile, depth < end ? depth : end);
      if (end > piece) add(waiting, stride, tile);
      if (depth <= end) return;
      store(tile, waiting, stride);
      clear(tile);
    }
  }

  SDPA_INLINE void run_to(Tile<S, Rows, Columns>& tile, std::int64_t depth) {
    repeat(depth - done_, [&] SDPA_INLINE_LAMBDA { step(tile); });
  }

 private:
  const Element* rows_[Rows];
  const Element* lanes_;
  std::int64_t lane_stride_, done_ = 0;
};

template <class S, int Rows, int Columns, typename Element>
SDPA_INLINE void multiply_rows(Tile<S, Rows, Columns>& tile, const Element* rows,
                               std::int64_t row_stride, const Element* lanes,
                               std::int64_t lane_stride, std::int64_t depth) {
  RowProduct<S, Rows, Columns, Element>(rows, row_stride, lanes, lane_stride).run_to(tile, depth);
}

template <class S, int Rows, int Columns, typename Element>
SDPA_INLINE void multiply_columns(Tile<S, Rows, Columns>& tile, const Element* columns,
                                  std::int64_t column_stride, const Element* lanes,
                                  std::int64_t lane_stride, std::int64_t depth) {
  const auto step = [&] SDPA_INLINE_LAMBDA {
    decltype(S::load(lanes)) lane[Columns];
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA { lane[j] = S::load(lanes + j * S::kLanes); });
    unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA {
      const auto scalar = S::broadcast(columns[i]);
      unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
        tile.v[i][j] = S::multiply_add(scalar, lane[j], tile.v[i][j]);
      });
    });
    columns += column_stride;
    lanes += lane_stride;
  };
  repeat(depth, step);
}

/// Cuts [first, last) into pieces of Rows, then of half as many and so on, and calls
/// `function(integral_constant<piece>, start)` for each: tails need no padding and no masks.
template <int Rows, typename Function>
SDPA_INLINE void for_row_pieces(std::int64_t first, std::int64_t last, Function&& function) {
  for (; first + Rows <= last; first += Rows) function(std::integral_constant<int, Rows>{}, first);
  if constexpr (Rows > 1) for_row_pieces<Rows / 2>(first, last, function);
}

/// to[column][lane] = finish(from[lane][column]), in tiles of kLanes x kLanes: lanes are `count`
/// rows given by their addresses (nullptr: zeros); `columns` of each are read.
template <class S, typename Element, class Finish>
SDPA_INLINE void transpose_in(const Element* const* rows, int lanes, std::int64_t columns,
                              float* to, std::int64_t lane_stride, const Finish& finish) {
  constexpr int kLanes = S::kLanes;
  for (int lane = 0; lane < lanes; lane += kLanes)
    for (std::int64_t column = 0; column < columns; column += kLanes) {
      const int width = columns - column < kLanes ? static_cast<int>(columns - column) : kLanes;
      typename S::Vec block[kLanes];
      unroll<kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
        const Element* row = lane + i < lanes ? rows[lane + i] : nullptr;
        block[i] = row == nullptr    ? S::zero()
                   : width == kLanes ? S::load(row + column)
                                     : S::load_part(row + column, width);
      });
      S::transpose(block);
      unroll<kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
        if (i < width) S::store(to + (column + i) * lane_stride + lane, finish(block[i]));
      });
    }
}

/// to[column][lane] = scale * from[lane][column].
template <class S, typename Element>
void transpose_in(const Element* const* rows, int lanes, std::int64_t columns, float scale,
                  float* to, std::int64_t lane_stride) {
  transpose_in<S>(rows, lanes, columns, to, lane_stride, [&](typename S::Vec v) SDPA_INLINE_LAMBDA {
    return S::mul(v, S::broadcast(scale));
  });
}

/// rows[lane][column] = from[column][lane] * factor[lane]: the way back; rows that are nullptr are
/// skipped.
template <class S, typename Element>
void transpose_out(const float* from, std::int64_t lane_stride, const float* factor, int lanes,
                   std::int64_t columns, Element* const* rows) {
  constexpr int kLanes = S::kLanes;
  for (int lane = 0; lane < lanes; lane += kLanes)
    for (std::int64_t column = 0; column < columns; column += kLanes) {
      const int width = columns - column < kLanes ? static_cast<int>(columns - column) : kLanes;
      const auto scale = S::load(factor + lane);
      typename S::Vec block[kLanes];
      unroll<kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
        block[i] = i < width ? S::mul(S::load(from + (column + i) * lane_stride + lane), scale)
                             : S::zero();
      });
      S::transpose(block);
      unroll<kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
        Element* row = lane + i < lanes ? rows[lane + i] : nullptr;
        if (row == nullptr) return;
        if (width == kLanes)
          S::store(row + column, block[i]);
        else
          S::store_part(row + column, block[i], width);
      });
    }
}

}  // namespace sdpa::cpu
