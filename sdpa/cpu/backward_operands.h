// SPDX-License-Identifier: MIT
#pragma once

// How the operands of the five products lie in scratch memory, for each kind of Element (tile.h).
//
//                          float                  BFloat16Pair
//   rows    K, V           [row][columns]         [row][words of columns]     broadcast: S, dP
//   lanes   Q^T, dO^T      [columns][lane]        [words of columns][lane]    with the former
//   steps   dO, Q, K       the rows themselves    [words of rows][columns]    summed over rows
//   by_lane P, dS          [key][lane]            [key][words of lanes]       with steps: dV, dK
//   by_key  dS             the same               [words of keys][lane]       with steps: dQ
//
// A word of pairs holds two neighbours along the dimension that its product sums over, so bfloat16
// needs P and dS in two orders; both are made from registers.
#include "sdpa/cpu/backward_stage.h"
#include "sdpa/cpu/backward_tile.h"
#include "sdpa/cpu/stage.h"

namespace sdpa::cpu {

/// Staged rows of a tensor, and the same as steps of a sum.
template <typename Element>
struct Operand {
  const Element* rows = nullptr;
  std::int64_t row_stride = 0;
  const Element* steps = nullptr;
  std::int64_t step_stride = 0;
  bool is_finite = true;
  int row_count = 0;  ///< further rows stand for zeros
};

/// Where the weights of a slab are: `lanes` of them side by side.
template <typename Element>
struct Weights {
  Element* by_lane = nullptr;
  Element* by_key = nullptr;
  std::int64_t lanes = 0;
};

template <class S, typename Element>
struct Operands;

template <class S>
struct Operands<S, float> {
  using V = typename S::Vec;

  static Operand<float> stage_rows(const TensorRows& from, const StagedRows& to) {
    const bool is_finite = stage<S>(from, from.rows, to);
    return {to.data, to.stride, to.data, to.stride, is_finite, from.rows};
  }

  /// Read in place where that is as good.
  static Operand<float> stage_keys(const TensorRows& from, const StagedRows& to) {
    const std::int64_t spread = spread_columns(to.stride);
    if (spread != to.stride || !lie_as_staged(from, to.stride))
      return stage_rows(from, {to.data, spread});
    const auto* data = reinterpret_cast<const float*>(from.row[0]);
    const bool is_finite = are_finite<S>(data, from.rows * to.stride);
    return {data, to.stride, data, to.stride, is_finite, from.rows};
  }

  static Operand<float> stage_steps(const TensorRows& from, int, const StagedRows& to) {
    return stage_keys(from, to);
  }

  /// The product with values shows by itself where they are not finite.
  static Operand<float> stage_values(const TensorRows& from, const StagedRows& to) {
    if (!lie_as_staged(from, to.stride)) return stage_rows(from, to);
    const auto* data = reinterpret_cast<const float*>(from.row[0]);
    return {data, to.stride, data, to.stride, true, from.rows};
  }

  /// to[column][row] = factor * rows[first + row][column]
  static void transpose(const Operand<float>& from, int first, int count, int columns, float factor,
                        float* to) {
    const float* row[kMaxBlockLanes];
    for (int i = 0; i < count; ++i)
      row[i] = first + i < from.row_count ? from.rows + (first + i) * from.row_stride : nullptr;
    transpose_in<S>(row, count, columns, factor, to, count);
  }

  static SDPA_INLINE V load(const float* row, std::int64_t column) { return S::load(row + column); }

  template <class T>
  static SDPA_INLINE void store_by_lane(const T& tile, const Weights<float>& to, int key,
                                        int lane) {
    store(tile, to.by_lane + key * to.lanes + lane, to.lanes);
  }

  template <class T>
  static SDPA_INLINE void store_both(const T& tile, const Weights<float>& to, int key, int lane) {
    store_by_lane(tile, to, key, lane);
  }
};

/// Rows of bfloat16 with neighbouring columns in pairs. A lane's word goes through vectors of
/// floats, which only move it.
template <class S>
struct Operands<S, BFloat16Pair> {
  using V = typename S::Vec;

  static Operand<BFloat16Pair> stage_rows(const TensorRows& from, int padded_rows,
                                          const StagedRows& to) {
    const std::int64_t stride = to.stride / 2;
    auto* words = reinterpret_cast<BFloat16Pair*>(to.data);
    std::uint32_t infinite = 0;
    for (int row = 0; row < padded_rows; ++row) {
      BFloat16Pair* out = words + row * stride;
      const std::int64_t filled = row < from.rows ? copy_row(from, row, out) : 0;
      for (std::int64_t c = filled; c < stride; ++c) out[c] = {0};
      for (std::int64_t c = 0; c < stride; ++c) infinite |= not_finite(out[c]);
    }
    return {words, stride, nullptr, to.stride, infinite == 0};
  }

  static Operand<BFloat16Pair> stage_keys(const TensorRows& from, const StagedRows& to) {
    return stage_steps(from, from.rows, to);
  }

  static Operand<BFloat16Pair> stage_values(const TensorRows& from, const StagedRows& to) {
    return stage_rows(from, from.rows, to);
  }

  /// Rows, and behind them neighbouring rows in pairs.
  static Operand<BFloat16Pair> stage_steps(const TensorRows& from, int padded_rows,
                                           const StagedRows& to) {
    Operand<BFloat16Pair> operand = stage_rows(from, padded_rows, to);
    const std::int64_t stride = operand.row_stride;
    auto* steps = reinterpret_cast<BFloat16Pair*>(to.data) + (padded_rows + 1) / 2 * 2 * stride;
    for (int row = 0; row < padded_rows; row += 2) {
      const BFloat16Pair* even = operand.rows + row * stride;
      BFloat16Pair* out = steps + row / 2 * to.stride;
      if (row + 1 < padded_rows)
        zip_rows(even, even + stride, stride, out);
      else
        for (std::int64_t c = 0; c < stride; ++c) {
          out[2 * c] = {even[c].bits & 0xffffu};
          out[2 * c + 1] = {even[c].bits >> 16};
        }
    }
    operand.steps = steps;
    return operand;
  }

  /// to[word][row] = rows[first + row][word]; bfloat16 has no room for a factor.
  static void transpose(const Operand<BFloat16Pair>& from, int first, int count, int columns, float,
                        BFloat16Pair* to) {
    const float* row[kMaxBlockLanes];
    for (int i = 0; i < count; ++i)
      row[i] = reinterpret_cast<const float*>(from.rows + (first + i) * from.row_stride);
    transpose_in<S>(row, count, (columns + 1) / 2, reinterpret_cast<float*>(to), count,
                    [](V words) SDPA_INLINE_LAMBDA { return words; });
  }

  static SDPA_INLINE V load(const BFloat16Pair* row, std::int64_t column) {
    return S::load(reinterpret_cast<const BFloat16*>(row) + column);
  }

  template <int Rows, int Columns>
  static SDPA_INLINE void store_by_lane(const Tile<S, Rows, Columns>& tile,
                                        const Weights<BFloat16Pair>& to, int key, int lane) {
    auto* half = reinterpret_cast<BFloat16*>(to.by_lane) + key * to.lanes + lane;
    unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA {
      unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
        S::store_rounded(half + i * to.lanes + j * S::kLanes, tile.v[i][j]);
      });
    });
  }

  /// `key` is even.
  template <int Rows, int Columns>
  static SDPA_INLINE void store_both(const Tile<S, Rows, Columns>& tile,
                                     const Weights<BFloat16Pair>& to, int key, int lane) {
    store_by_lane(tile, to, key, lane);
    BFloat16Pair* word = to.by_key + key / 2 * to.lanes + lane;
    unroll<(Rows + 1) / 2>([&](auto i) SDPA_INLINE_LAMBDA {
      unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
        V odd = S::zero();
        if constexpr (2 * i + 1 < Rows) odd = tile.v[2 * i + 1][j];
        S::store(word + i * to.lanes + j * S::kLanes, S::pack_pairs(tile.v[2 * i][j], odd));
      });
    });
  }

 private:
  /// Returns the words written.
  static std::int64_t copy_row(const TensorRows& from, int row, BFloat16Pair* out) {
    const auto* data = reinterpret_cast<const BFloat16*>(from.row[row]);
    const int whole = from.columns / 2;
    if (from.step == 1)
      __builtin_memcpy(out, data, static_cast<std::size_t>(whole) * sizeof(BFloat16Pair));
    else
      for (int c = 0; c < whole; ++c)
        out[c] = make_pair(data[2 * c * from.step], data[(2 * c + 1) * from.step]);
    if (from.columns % 2 == 0) return whole;
    out[whole] = make_pair(data[2 * whole * from.step], BFloat16{0});
    return whole + 1;
  }

  /// The upper bit of a half is set where its exponent is all ones.
  static SDPA_INLINE std::uint32_t not_finite(BFloat16Pair pair) {
    return ((pair.bits & 0x7f807f80u) + 0x00800080u) & 0x80008000u;
  }

  static void zip_rows(const BFloat16Pair* even, const BFloat16Pair* odd, std::int64_t words,
                       BFloat16Pair* to) {
    for (std::int64_t c = 0; c < words; ++c) {
      to[2 * c] = {(even[c].bits & 0xffffu) | odd[c].bits << 16};
      to[2 * c + 1] = {even[c].bits >> 16 | (odd[c].bits & 0xffff0000u)};
    }
  }
};

}  // namespace sdpa::cpu
