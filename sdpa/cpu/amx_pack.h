// SPDX-License-Identifier: MIT
#pragma once

// From rows of bfloat16 tensors, whose elements lie side by side, to packed tiles. A product of a
// zero and a NaN would be NaN, so that packing says whether all elements are finite.

#include "sdpa/cpu/amx_tile.h"
#include "sdpa/cpu/lanes.h"
#include "sdpa/tensor.h"

namespace sdpa::cpu {
namespace {

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// The first `count` of 32 elements; zeros beyond, and for a null row.
SDPA_INLINE __m512i load_row(const BFloat16* row, std::int64_t count) {
  if (row == nullptr || count <= 0) return _mm512_setzero_si512();
  const auto lanes = static_cast<__mmask32>(_bzhi_u32(~0u, static_cast<unsigned>(count)));
  return count >= kTileDepth ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi16(lanes, row);
}

/// Elements of two rows by turns: first[0], second[0], first[1], ... for 16 columns.
SDPA_INLINE __m512i interleave(const BFloat16* first, const BFloat16* second, std::int64_t count) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const std::int64_t half = count < kTileRows ? count : kTileRows;
  const __m256i low = _mm512_castsi512_si256(load_row(first, half));
  const __m256i high = _mm512_castsi512_si256(load_row(second, half));
  return _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}

/// Remembers elements that are not finite: their exponent is all ones.
class FiniteCheck {
 public:
  SDPA_INLINE void look_at(__m512i elements) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    infinite_ |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(elements, exponent), exponent);
  }

  bool is_finite() const { return infinite_ == 0; }

 private:
  __mmask32 infinite_ = 0;
};

template <class S>
SDPA_INLINE void store_transposed(const __m512i (&words)[kTileRows], BFloat16* tile) {
  __m512 rows[kTileRows];
  unroll<kTileRows>([&](auto i) SDPA_INLINE_LAMBDA { rows[i] = _mm512_castsi512_ps(words[i]); });
  S::transpose(rows);
  unroll<kTileRows>([&](auto i) SDPA_INLINE_LAMBDA {
    _mm512_store_ps(reinterpret_cast<float*>(tile + i * kTileDepth), rows[i]);
  });
}

/// A null row stays null.
SDPA_INLINE const BFloat16* at_column(const BFloat16* row, std::int64_t column) {
  return row == nullptr ? nullptr : row + column;
}

/// A from 16 rows as they are: tile[step][row][32]. Whether all of it is finite.
inline bool pack_rows(const BFloat16* const* rows, std::int64_t columns, BFloat16* tiles) {
  FiniteCheck check;
  for (std::int64_t column = 0; column < columns; column += kTileDepth, tiles += kTileSize)
    for (int row = 0; row < kTileRows; ++row) {
      const __m512i elements = load_row(at_column(rows[row], column), columns - column);
      check.look_at(elements);
      _mm512_store_si512(tiles + row * kTileDepth, elements);
    }
  return check.is_finite();
}

/// Tiles of 16 x 16 words, transposed, `stride` elements apart: `words(i, column)` are row i of the
/// one that begins at a column, each `width` columns wide. Whether all of it is finite.
template <class S, class Words>
SDPA_INLINE bool pack_words(std::int64_t columns, std::int64_t width, std::int64_t stride,
                            BFloat16* tiles, const Words& words) {
  FiniteCheck check;
  for (std::int64_t column = 0; column < columns; column += width, tiles += stride) {
    __m512i rows[kTileRows];
    unroll<kTileRows>([&](auto i) SDPA_INLINE_LAMBDA {
      rows[i] = words(i, column);
      check.look_at(rows[i]);
    });
    store_transposed<S>(rows, tiles);
  }
  return check.is_finite();
}

/// B whose columns are 16 given rows: tile[d / 32][d / 2][row][d % 2], `stride` elements apart.
/// Whether all of it is finite.
template <class S>
bool pack_column_tiles(const BFloat16* const* rows, std::int64_t columns, std::int64_t stride,
                       BFloat16* tiles) {
  return pack_words<S>(columns, kTileDepth, stride, tiles,
                       [&](int i, std::int64_t column) SDPA_INLINE_LAMBDA {
                         return load_row(at_column(rows[i], column), columns - column);
                       });
}

/// B whose columns are 32 given rows: tile[step][row / 16][d / 2][row % 16][d % 2]. Whether all of
/// it is finite.
template <class S>
bool pack_columns(const BFloat16* const* rows, std::int64_t columns, BFloat16* tiles) {
  bool finite = true;
  for (int half = 0; half < 2; ++half, rows += kTileRows, tiles += kTileSize)
    finite &= pack_column_tiles<S>(rows, columns, 2 * kTileSize, tiles);
  return finite;
}

/// Rows 2 pair and 2 pair + 1 by turns, 16 columns from `column` on.
SDPA_INLINE __m512i pair_of_rows(const BFloat16* const* rows, int pair, std::int64_t column,
                                 std::int64_t columns) {
  return interleave(at_column(rows[2 * pair], column), at_column(rows[2 * pair + 1], column),
                    columns - column);
}

/// A from the transposed of 32 rows, zeros from `columns` to `padded`: tile[d / 16][d % 16][row].
/// Whether all of it is finite.
template <class S>
bool pack_transposed(const BFloat16* const* rows, std::int64_t columns, std::int64_t padded,
                     BFloat16* tiles) {
  return pack_words<S>(padded, kTileRows, kTileSize, tiles,
                       [&](int i, std::int64_t column)
                           SDPA_INLINE_LAMBDA { return pair_of_rows(rows, i, column, columns); });
}

/// B from 32 rows, zeros from `columns` to `padded`: tile[d / 16][row / 2][d % 16][row % 2].
inline void pack_pairs(const BFloat16* const* rows, std::int64_t columns, std::int64_t padded,
                       BFloat16* tiles) {
  for (std::int64_t column = 0; column < padded; column += kTileRows, tiles += kTileSize)
    for (int pair = 0; pair < kTileRows; ++pair)
      _mm512_store_si512(tiles + pair * kTileDepth, pair_of_rows(rows, pair, column, columns));
}

/// Addresses of `count` rows of a head from `first` on; nullptr beyond the last.
inline void find_rows(const TensorView& view, std::int64_t batch, std::int64_t head,
                      std::int64_t first, int count, const BFloat16** rows) {
  for (int i = 0; i < count; ++i)
    rows[i] = first + i < view.shape[2] ? view.at<BFloat16>(batch, head, first + i) : nullptr;
}

/// Addresses of the rows of 32 lanes; nullptr for lanes that stand for nothing.
inline void find_lanes(const TensorView& view, const Lanes& lanes, const BFloat16** rows) {
  for (int lane = 0; lane < kAmxBlock; ++lane)
    rows[lane] = lane < lanes.count ? row_of<const BFloat16>(view, lanes, lane) : nullptr;
}

/// Whether the elements of a row lie side by side.
inline bool has_whole_rows(const TensorView& view) {
  return view.shape[3] <= 1 || view.strides[3] == 1;
}

}  // namespace
}  // namespace sdpa::cpu
