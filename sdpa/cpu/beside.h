// SPDX-License-Identifier: MIT
#pragma once

// Tiles of products along a panel of lanes, each finished beside the products of the next:
//
//   for each tile of keys:
//     tile = A[keys] B, and between its steps: finish(waiting sums), a vector or two at a time
//     waiting sums = tile
//
// Products keep the pipes that multiply busy and leave those that add, shuffle and shift idle;
// what is done to a sum once it is complete (scale, mask, exponentiate) needs mostly those. One
// after the other, a vector of exponentials costs half a cycle an instruction; within the next
// tile's products only the multiplications show (measured alone, D 64, one Zen 4 core: 73.3 cycles
// a vector of 16 scores and exponentials without, 68.7 so, where products alone take 64.1). The
// processor's own window is too short for that: it holds no more than the tile's last steps.

#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

/// Keys [first_key, last_key) of A against one panel of lanes: sums[key][lane] = A[key] B[lane].
template <typename Element>
struct Product {
  const Element* a;
  std::int64_t a_stride;
  const Element* b;  ///< [depth][b_stride], at the panel's first lane
  std::int64_t b_stride;
  std::int64_t depth, piece;  ///< see RowProduct::run
  int first_key, last_key;
};

/// The sums of one tile until they are finished. A Finish has
///
///   kAtOnce                    rows that it takes at a time, 1 or 2
///   complete(tile)             all that needs the whole tile in registers
///   arrive(key, rows)          the tile waits in memory
///   begin(key, j), end(j)      before and after the rows of column j, which `key` is the first of
///   finish(key, j, Vec (&)[n]) n sums of column j for keys from `key` on, n at most kAtOnce
template <class S, int Columns, class Finish>
class WaitingTile {
 public:
  /// Parts that a whole tile is finished in.
  static constexpr int kParts = S::kRows / Finish::kAtOnce * Columns;

  SDPA_INLINE WaitingTile(float* sums, std::int64_t stride, const Finish& finish)
      : sums_(sums), stride_(stride), finish_(finish) {}

  template <int Rows>
  SDPA_INLINE void put(Tile<S, Rows, Columns>& tile, int key) {
    finish_.complete(tile);
    store(tile, sums_, stride_);
    finish_.arrive(key, Rows);
    key_ = key;
    waits_ = true;
  }

  SDPA_INLINE bool waits() const { return waits_; }

  /// Finishes all rows, calling `before` before each part.
  template <int Rows, class Before>
  SDPA_INLINE void finish(const Before& before) {
    constexpr int kAtOnce = Finish::kAtOnce < Rows ? Finish::kAtOnce : Rows;
    const float* column = sums_;
    for (int j = 0; j < Columns; ++j, column += S::kLanes) {
      finish_.begin(key_, j);
      const float* at = column;
      for (int row = 0; row < Rows; row += kAtOnce, at += kAtOnce * stride_) {
        before();
        typename S::Vec sums[kAtOnce];
        unroll<kAtOnce>([&](auto i) SDPA_INLINE_LAMBDA { sums[i] = S::load(at + i * stride_); });
        finish_.finish(key_ + row, j, sums);
      }
      finish_.end(j);
    }
    waits_ = false;
  }

 private:
  float* sums_;
  std::int64_t stride_;
  Finish finish_;
  int key_ = 0;
  bool waits_ = false;
};

/// Computes the sums of `m` and has each finished; `waiting` is room for [S::kRows][stride].
template <class S, int Columns, typename Element, class Finish>
void multiply_and_finish(const Product<Element>& m, float* waiting, std::int64_t stride,
                         const Finish& finish) {
  constexpr int kParts = WaitingTile<S, Columns, Finish>::kParts;
  const std::int64_t in_one_go = m.depth < m.piece ? m.depth : m.piece;
  const auto nothing = [] SDPA_INLINE_LAMBDA {};
  WaitingTile<S, Columns, Finish> last(waiting, stride, finish);
  for_row_pieces<S::kRows>(
      m.first_key, m.last_key, [&](auto rows, std::int64_t key) SDPA_INLINE_LAMBDA {
        Tile<S, rows, Columns> tile;
        clear(tile);
        RowProduct<S, rows, Columns, Element> product(m.a + key * m.a_stride, m.a_stride, m.b,
                                                      m.b_stride);
        const auto steps = [&] SDPA_INLINE_LAMBDA {
          unroll<Finish::kAtOnce>([&](auto) SDPA_INLINE_LAMBDA { product.step(tile); });
        };
        if constexpr (rows == S::kRows) {
          if (last.waits() && in_one_go >= Finish::kAtOnce * kParts)
            last.template finish<S::kRows>(steps);
        }
        if (last.waits()) last.template finish<S::kRows>(nothing);
        product.run(tile, m.depth, m.piece, waiting, stride);
        last.put(tile, static_cast<int>(key));
        if constexpr (rows != S::kRows) last.template finish<rows>(nothing);
      });
  if (last.waits()) last.template finish<S::kRows>(nothing);
}

}  // namespace sdpa::cpu
