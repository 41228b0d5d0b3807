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

/// The same for products with one column: tiles 0 and 1 of C have rows of one float, tile 6 of B
/// rows of one pair.
constexpr TileConfiguration kColumnConfiguration{.row_bytes = {4, 4, 64, 64, 64, 64, 4, 64}};

/// Configures the tile registers of this thread; gives them back at the end of its scope.
class TileRegisters {
 public:
  explicit TileRegisters(const TileConfiguration& configuration = kTileConfiguration) {
    _tile_loadconfig(&configuration);
  }

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

  /// to[32][32] (+)= A B over `steps` tiles of depth; `to` has rows of `stride` floats. With one
  /// column of tiles it is to[32][16], with one row of them to[16][32], and the second tile of B or
  /// of A is not read.
  template <Sum kSum, int kColumns = 2, int kRows = 2>
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
      if constexpr (kColumns == 2) _tile_loadd(1, to + kTileRows, to_bytes);
      if constexpr (kRows == 2) _tile_loadd(2, low, to_bytes);
      if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, low + kTileRows, to_bytes);
    }
    for (int step = 0; step < steps; ++step, a.data += a.step, b.data += b.step) {
      _tile_loadd(4, a.data, a_bytes);
      _tile_loadd(6, b.data, b_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kRows == 2) {
        _tile_loadd(5, a.data + a.second, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
      }
      if constexpr (kColumns == 2) {
        _tile_loadd(7, b.data + b.second, b_bytes);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kRows == 2) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, to, to_bytes);
    if constexpr (kColumns == 2) _tile_stored(1, to + kTileRows, to_bytes);
    if constexpr (kRows == 2) _tile_stored(2, low, to_bytes);
    if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, low + kTileRows, to_bytes);
  }

  /// to[32] = A b over `steps` tiles of depth, with registers as in kColumnConfiguration.
  static SDPA_INLINE void multiply_column(float* to, TilePair a, const BFloat16* column,
                                          int steps) {
    const std::int64_t a_bytes = a.row * 2;
    finish_stores();
    _tile_zero(0);
    _tile_zero(1);
    for (int step = 0; step < steps; ++step, a.data += a.step, column += kTileDepth) {
      _tile_loadd(6, column, 4);
      _tile_loadd(4, a.data, a_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, a.data + a.second, a_bytes);
      _tile_dpbf16ps(1, 5, 6);
    }
    _tile_stored(0, to, 4);
    _tile_stored(1, to + kTileRows, 4);
  }
};

/// to[row][lane] = 32 packed rows times 32 packed columns, the lanes.
template <class Tiles>
SDPA_INLINE void multiply_lanes(float* to, const BFloat16* rows, const BFloat16* columns,
                                std::int64_t steps) {
  Tiles::template multiply_block<Sum::kStart>(
      to, kAmxBlock, packed(rows, steps * kTileSize, kTileSize),
      packed(columns, kTileSize, 2 * kTileSize), static_cast<int>(steps));
}

/// to[d][lane] += rows of 32 keys a step, packed transposed in `tiles` tiles (an even number),
/// times weights[key / 2][lane][key % 2].
template <class Tiles>
SDPA_INLINE void add_weighted(float* to, const BFloat16* rows, std::int64_t tiles,
                              const BFloat16* weights, int steps) {
  const TilePair pairs{.data = weights,
                       .row = 2 * kAmxBlock,
                       .second = kTileDepth,
                       .step = kTileRows * 2 * kAmxBlock};
  for (std::int64_t tile = 0; tile < tiles; tile += 2)
    Tiles::template multiply_block<Sum::kContinue>(
        to + tile * kTileRows * kAmxBlock, kAmxBlock,
        packed(rows + tile * kTileSize, kTileSize, tiles * kTileSize), pairs, steps);
}

/// Pairs of floats, rounded as by Avx512::round_to_bfloat16.
SDPA_INLINE __m512i round_pairs(__m512 first, __m512 second) {
  constexpr int kSelect = 0xca;  // where the first operand's bit is set the second, else the third
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(first), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(second), half);
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(-0x10000), high, low, kSelect);
}

/// Pairs of floats that are bfloat16.
SDPA_INLINE __m512i join_pairs(__m512 first, __m512 second) {
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first), 16),
                         _mm512_castps_si512(second));
}

}  // namespace
}  // namespace sdpa::cpu
