// SPDX-License-Identifier: MIT
#pragma once

// The two products of a decode task's block of keys with AMX (amx_tile.h), for up to 16 rows of
// bfloat16. Keys and values are read once, so that they are not packed as in amx_forward.h:
//
//   scores   S^T[key][row] = K[key][d]   Q^T[d][row]     A: keys where they lie   B: columns of Q
//            transposed in registers, 16 keys at a time, into the rows that decode keeps
//   output   O[row][d]     = P[row][key] V[key][d]       A: those rows, rounded   B: pairs of V
//
// 32 columns of V at a time are interleaved into pairs of keys, as one line of each row comes in;
// their order within the 32 is undone on the sum. Keys are copied only where a tile is ragged.
//
// Eight heads of 4096 keys, D64, one Granite Rapids core: eight rows take 0.63 ms, on vectors 0.85;
// sixteen 0.80 instead of 1.64. Two to four are as fast on vectors.
//
// The scores of one row are a product with one column, which leaves them side by side; its output
// is decode's own, on vectors. Where its keys and values follow each other, only the first lines of
// pages are asked for: the processor fetches the rest of a page as fast, and asking for each line
// takes as long as the products do (eight heads of 512 keys, D64: 27 to 17 us; of 4096, which the
// second level of cache does not hold, 0.33 to 0.31 ms).

#include "sdpa/cpu/amx_pack.h"
#include "sdpa/cpu/decode.h"
#include "sdpa/cpu/simd_avx512_bf16.h"

namespace sdpa::cpu {
namespace {

/// Decode's vectors where TileProducts does its products. Rounded as with dot products of pairs.
template <class TileProducts>
struct AmxDecode : Avx512BFloat16 {
  using Tiles = TileProducts;
  using Registers = typename Tiles::Registers;

  /// Floats that are bfloat16.
  static SDPA_INLINE void store_rounded(BFloat16* to, Vec v) {
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(v), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(high));
  }
};

/// The same for one row, whose probabilities stay floats.
template <class TileProducts>
struct AmxColumn : Avx512 {
  using Tiles = TileProducts;

  struct Registers : Tiles::Registers {
    Registers() : Tiles::Registers(kColumnConfiguration) {}
  };
};

/// Keys [key, key + 32) where they lie, or a copy with zeros where they reach beyond `end` or their
/// rows end within a tile.
inline TilePair key_tiles(const DecodeRows<BFloat16>& keys, int key, int end, BFloat16* copy) {
  const BFloat16* from = keys.data + key * keys.stride;
  for (int n = 0; keys.ahead != 0 && n < kAmxBlock && key + n < end; ++n)
    prefetch_row(keys, from + n * keys.stride, keys.columns);
  if (key + kAmxBlock <= end && keys.columns % kTileDepth == 0)
    return {
        .data = from, .row = keys.stride, .second = kTileRows * keys.stride, .step = kTileDepth};
  const BFloat16* rows[kAmxBlock];
  for (int n = 0; n < kAmxBlock; ++n) rows[n] = key + n < end ? from + n * keys.stride : nullptr;
  const std::int64_t half = ceil_div(keys.columns, kTileDepth) * kTileSize;
  pack_rows(rows, keys.columns, copy);
  pack_rows(rows + kTileRows, keys.columns, copy + half);
  return packed(copy, half, kTileSize);
}

}  // namespace

template <class Tiles, class Task>
class DecodeProducts<AmxColumn<Tiles>, BFloat16, Task>
    : public VectorProducts<AmxColumn<Tiles>, BFloat16, Task> {
  using Vectors = VectorProducts<AmxColumn<Tiles>, BFloat16, Task>;

 public:
  using Vectors::Vectors;

  void score() {
    next_keys_ = nullptr;
    if (is_dense(t_.keys) && t_.keys.ahead != 0) {
      next_keys_ = t_.keys.data + t_.keys.ahead;
      t_.keys.ahead = 0;
    }
    if (is_dense(t_.values)) {
      ask_for_pages(t_.values.data, t_.end * t_.values.stride);
      t_.values.ahead = 0;
    }
    const auto steps = static_cast<int>(ceil_div(t_.problem.qk_dim, kTileDepth));
    for (int key = t_.begin / kAmxBlock * kAmxBlock; key < t_.end; key += kAmxBlock)
      Tiles::multiply_column(t_.work.scores + key,
                             key_tiles(t_.keys, key, t_.end, t_.work.key_tiles), t_.queries(),
                             steps);
  }

  void accumulate() {
    if (next_keys_ != nullptr) ask_for_pages(next_keys_, kKeyBlock * t_.keys.stride);
    Vectors::accumulate();
  }

 private:
  static bool is_dense(const DecodeRows<BFloat16>& rows) { return rows.stride == rows.columns; }

  /// The first lines of each page. The processor goes on from the second.
  static void ask_for_pages(const BFloat16* from, std::int64_t count) {
    constexpr std::int64_t kPage = 4096 / sizeof(BFloat16), kLine = 64 / sizeof(BFloat16);
    for (const BFloat16* page = from; page < from + count; page += kPage)
      for (int line = 0; line < 4; ++line) __builtin_prefetch(page + line * kLine, 0, 2);
  }

  using Vectors::t_;

  const BFloat16* next_keys_ = nullptr;  ///< those of the next block, where they are dense
};

template <class Tiles, class Task>
class DecodeProducts<AmxDecode<Tiles>, BFloat16, Task> {
 public:
  explicit DecodeProducts(Task& task)
      : t_(task), steps_(static_cast<int>(ceil_div(task.problem.qk_dim, kTileDepth))) {
    const BFloat16* rows[kTileRows];
    for (int row = 0; row < kTileRows; ++row)
      rows[row] = row < t_.rows() ? t_.queries() + row * t_.query_stride() : nullptr;
    pack_column_tiles<S>(rows, t_.problem.qk_dim, kTileSize, t_.work.query_tiles);
  }

  void score() {
    for (int key = t_.begin / kAmxBlock * kAmxBlock; key < t_.end; key += kAmxBlock) {
      alignas(64) float scores[kAmxBlock][kTileRows];
      const TilePair queries{
          .data = t_.work.query_tiles, .row = kTileDepth, .second = 0, .step = kTileSize};
      Tiles::template multiply_block<Sum::kStart, 1>(
          scores[0], kTileRows, key_tiles(t_.keys, key, t_.end, t_.work.key_tiles), queries,
          steps_);
      store_rows(scores, key);
      store_rows(scores + kTileRows, key + kTileRows);
    }
  }

  void accumulate() {
    const int first = t_.begin / kAmxBlock * kAmxBlock;
    const int steps = static_cast<int>(ceil_div(t_.end - first, kAmxBlock));
    clear_unseen(first, first + steps * kAmxBlock);
    for (std::int64_t d = 0; d < t_.problem.v_dim; d += kAmxBlock) {
      alignas(64) BFloat16 pairs[kKeyBlock * kAmxBlock];
      alignas(64) float sums[kTileRows][kAmxBlock];
      pack_values(first, steps, d, pairs);
      const TilePair weights{
          .data = t_.work.rounded + first, .row = kScoreStride, .second = 0, .step = kTileDepth};
      Tiles::template multiply_block<Sum::kStart, 2, 1>(
          sums[0], kAmxBlock, weights, packed(pairs, kTileSize, 2 * kTileSize), steps);
      for (int row = 0; row < t_.rows(); ++row) add_row(row, d, sums[row]);
    }
  }

 private:
  using S = AmxDecode<Tiles>;
  using Vec = typename S::Vec;

  void store_rows(const float (*scores)[kTileRows], int key) {
    Vec rows[kTileRows];
    unroll<kTileRows>([&](auto n) SDPA_INLINE_LAMBDA { rows[n] = S::load(scores[n]); });
    S::transpose(rows);
    float* to = t_.work.scores + key;
    unroll<kTileRows>([&](auto n) SDPA_INLINE_LAMBDA {
      if (n < t_.rows()) S::store(to + n * kScoreStride, rows[n]);
    });
  }

  /// Whole vectors of probabilities have been written around [begin, end). What memory held in the
  /// rest of the tiles may be NaN, which a value of zero would not undo.
  void clear_unseen(int first, int last) {
    const int low = t_.begin / S::kLanes * S::kLanes;
    const auto high = static_cast<int>(round_up(t_.end, S::kLanes));
    for (int row = 0; row < t_.rows(); ++row) {
      BFloat16* p = t_.work.rounded + row * kScoreStride;
      for (int key = first; key < low; ++key) p[key] = {};
      for (int key = high; key < last; ++key) p[key] = {};
    }
  }

  /// Pairs of keys by columns [d, d + 32), in the order of S::interleave: tile[step][2][pair][32].
  void pack_values(int first, int steps, std::int64_t d, BFloat16* tiles) {
    const DecodeRows<BFloat16>& values = t_.values;
    const std::int64_t left = values.columns - d;
    const auto row = [&](int key) SDPA_INLINE_LAMBDA {
      if (key < t_.begin || key >= t_.end) return typename S::Pairs{_mm512_setzero_si512()};
      const BFloat16* from = values.data + key * values.stride + d;
      prefetch_row(values, from, kAmxBlock);
      return typename S::Pairs{load_row(from, left)};
    };
    for (int step = 0; step < steps; ++step, tiles += 2 * kTileSize)
      for (int pair = 0; pair < kTileRows; ++pair) {
        const int key = first + step * kAmxBlock + 2 * pair;
        typename S::Pairs low, high;
        S::interleave(row(key), row(key + 1), low, high);
        BFloat16* to = tiles + pair * kTileDepth;
        _mm512_store_si512(to, low.words);
        _mm512_store_si512(to + kTileSize, high.words);
      }
  }

  void add_row(int row, std::int64_t d, const float* sums) {
    Vec low = S::load(sums), high = S::load(sums + S::kLanes);
    S::order_as_columns(low, high);
    if (t_.hides_some() && !is_finite(Tile<S, 1, 2>{{{low, high}}})) {
      const std::int64_t left = t_.problem.v_dim - d;
      return t_.add_seen(row, 1, d, static_cast<int>(left < kAmxBlock ? left : kAmxBlock));
    }
    const Vec factor = S::broadcast(t_.work.rescale[row]);
    float* out = t_.partial.out + row * t_.out_stride() + d;
    S::store(out, S::multiply_add(S::load(out), factor, low));
    S::store(out + S::kLanes, S::multiply_add(S::load(out + S::kLanes), factor, high));
  }

  Task& t_;
  int steps_;
};

/// Up to 16 rows a head.
template <class Tiles>
void decode_with_tiles(const Problem& problem, const ForwardTensors& tensors) {
  const DecodePlan plan = plan_decode(problem);
  if (plan.rows == 1)
    DecodePass<AmxColumn<Tiles>, BFloat16>{problem, tensors, plan}.run();
  else
    DecodePass<AmxDecode<Tiles>, BFloat16>{problem, tensors, plan}.run();
}

}  // namespace sdpa::cpu
