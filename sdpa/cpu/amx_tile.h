// SPDX-License-Identifier: MIT
#pragma once

// Intel AMX: eight tile registers of 16 rows of 64 bytes, and one instruction that adds a product
// of two bfloat16 tiles to a float32 tile, sixteen times the multiply-adds of a vector instruction:
//
//   C[16][16] += A[16][32] B[32][16]      A by rows; B with its rows interleaved by pairs,
//                                         B[k / 2][column][k % 2]
//
// Every product of attention is brought to that form with lanes = queries, as in tile.h:
//
//   scores     S^T[key][q]  = K[key][d]    Q^T[d][q]       A: rows of K       B: pack_columns(Q)
//   output     O^T[d][q]    = V^T[d][key]  P^T[key][q]     A: pack_transposed(V)   B: P^T by pairs
//   gradients  dV[key][d]   = P^T[key][q]  dO[q][d]        A: rows of P^T     B: pack_pairs(dO)
//
// A block of 32 x 32 results uses four tiles of C, two of A and two of B: each tile that is loaded
// serves two products, so that loads (8 cycles) hide behind products (16 cycles). Packed operands
// are contiguous tiles of 1 KiB, padded with zeros: rows 4 KiB apart would fall into one cache set.

#include <immintrin.h>

#include "sdpa/cpu/simd.h"

namespace sdpa::cpu {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;                     ///< bfloat16 elements in a row of a tile
constexpr int kTileSize = kTileRows * kTileDepth;  ///< elements of a packed tile
constexpr int kAmxBlock = 2 * kTileRows;           ///< results are computed in blocks of 32 x 32

/// Eight tiles of 16 rows of 64 bytes. A constant: g++ 12 takes _tile_loadconfig to read eight
/// bytes, and leaves out stores to the others.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr TileConfiguration kTileConfiguration;

/// Configures the tile registers of this thread; gives them back at the end of its scope.
class TileRegisters {
 public:
  TileRegisters() { _tile_loadconfig(&kTileConfiguration); }

  ~TileRegisters() { _tile_release(); }

  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

/// To be called between stores and the tile loads that read them: g++ 12 does not know that
/// _tile_loadd reads memory, and may do such a load before a store.
SDPA_INLINE void finish_stores() { asm volatile("" : : : "memory"); }

/// Where the tiles of an operand lie: `row` elements from one row of a tile to the next, `second`
/// to the other tile of the pair, `step` to the next tile along the summed dimension.
struct TilePair {
  const BFloat16* data;
  std::int64_t row, second, step;
};

/// Packed tiles of A: those of the second 16 rows follow `distance` elements later.
SDPA_INLINE TilePair packed(const BFloat16* data, std::int64_t second, std::int64_t step) {
  return {.data = data, .row = kTileDepth, .second = second, .step = step};
}

enum class Sum : std::uint8_t { kStart, kContinue };

/// Products of tiles by the processor. The tests have a model of this interface for processors
/// without AMX.
struct AmxTiles {
  using Registers = TileRegisters;

  /// to[32][32] (+)= A B over `steps` tiles of depth; `to` has rows of `stride` floats.
  template <Sum kSum>
  static SDPA_INLINE void multiply_block(float* to, std::int64_t stride, TilePair a, TilePair b,
                                         int steps) {
    float* low = to + kTileRows * stride;
    const std::int64_t to_bytes = stride * 4, a_bytes = a.row * 2, b_bytes = b.row * 2;
    finish_stores();
    if constexpr (kSum == Sum::kStart) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, to, to_bytes);
      _tile_loadd(1, to + kTileRows, to_bytes);
      _tile_loadd(2, low, to_bytes);
      _tile_loadd(3, low + kTileRows, to_bytes);
    }
    for (int step = 0; step < steps; ++step, a.data += a.step, b.data += b.step) {
      _tile_loadd(4, a.data, a_bytes);
      _tile_loadd(6, b.data, b_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, a.data + a.second, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, b.data + b.second, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to, to_bytes);
    _tile_stored(1, to + kTileRows, to_bytes);
    _tile_stored(2, low, to_bytes);
    _tile_stored(3, low + kTileRows, to_bytes);
  }
};

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

/// To nearest, ties away from zero. A NaN may come out as another number. The processor's own
/// conversion lasts four times as long as an addition.
SDPA_INLINE __m512 round_to_bfloat16(__m512 v) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
}

/// Pairs of floats that are bfloat16.
SDPA_INLINE __m512i join_pairs(__m512 first, __m512 second) {
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first), 16),
                         _mm512_castps_si512(second));
}

template <class S>
SDPA_INLINE void store_transposed(const __m512i (&words)[kTileRows], BFloat16* tile) {
  __m512 rows[kTileRows];
  unroll<kTileRows>([&](auto i) SDPA_INLINE_LAMBDA { rows[i] = _mm512_castsi512_ps(words[i]); });
  S::transpose(rows);
  unroll<kTileRows>([&](auto i) SDPA_INLINE_LAMBDA {
    _mm512_store_ps(reinterpret_cast<float*>(tile + i * kTileDepth), rows[i]);
  });
}

/// A from 16 rows as they are: tile[step][row][32].
inline void pack_rows(const BFloat16* const* rows, std::int64_t columns, BFloat16* tiles) {
  for (std::int64_t column = 0; column < columns; column += kTileDepth, tiles += kTileSize)
    for (int row = 0; row < kTileRows; ++row)
      _mm512_store_si512(
          tiles + row * kTileDepth,
          load_row(rows[row] == nullptr ? nullptr : rows[row] + column, columns - column));
}

/// B whose columns are 16 given rows: tile[step][d / 2][row][d % 2].
template <class S>
void pack_columns(const BFloat16* const* rows, std::int64_t columns, std::int64_t step_stride,
                  BFloat16* tiles) {
  for (std::int64_t column = 0; column < columns; column += kTileDepth, tiles += step_stride) {
    __m512i words[kTileRows];
    unroll<kTileRows>([&](auto i) SDPA_INLINE_LAMBDA {
      words[i] = load_row(rows[i] == nullptr ? nullptr : rows[i] + column, columns - column);
    });
    store_transposed<S>(words, tiles);
  }
}

/// A from the transposed of 32 rows, zeros from `columns` to `padded`: tile[d / 16][d % 16][row].
template <class S>
void pack_transposed(const BFloat16* const* rows, std::int64_t columns, std::int64_t padded,
                     BFloat16* tiles) {
  for (std::int64_t column = 0; column < padded; column += kTileRows, tiles += kTileSize) {
    __m512i words[kTileRows];
    unroll<kTileRows>([&](auto i) SDPA_INLINE_LAMBDA {
      const BFloat16* first = rows[2 * i];
      const BFloat16* second = rows[2 * i + 1];
      words[i] = interleave(first == nullptr ? nullptr : first + column,
                            second == nullptr ? nullptr : second + column, columns - column);
    });
    store_transposed<S>(words, tiles);
  }
}

/// B from 32 rows, zeros from `columns` to `padded`: tile[d / 16][row / 2][d % 16][row % 2].
inline void pack_pairs(const BFloat16* const* rows, std::int64_t columns, std::int64_t padded,
                       BFloat16* tiles) {
  for (std::int64_t column = 0; column < padded; column += kTileRows, tiles += kTileSize)
    for (int pair = 0; pair < kTileRows; ++pair) {
      const BFloat16* first = rows[2 * pair];
      const BFloat16* second = rows[2 * pair + 1];
      _mm512_store_si512(
          tiles + pair * kTileDepth,
          interleave(first == nullptr ? nullptr : first + column,
                     second == nullptr ? nullptr : second + column, columns - column));
    }
}

}  // namespace
}  // namespace sdpa::cpu
