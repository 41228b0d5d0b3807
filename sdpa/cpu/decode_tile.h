// SPDX-License-Identifier: MIT
#pragma once

// The two products of decode, whose lanes are head dimensions: with few queries the vectors of
// tile.h would be mostly empty.
//
//   dot_rows     scores[row][key] = sum_d query[row][d] key[key][d]
//                Rows x Keys accumulators, each the partial sums of one score; whole vectors of
//                scores come from adding up kLanes accumulators at a time (sum_rows)
//   add_values   out[row][d] += p[row][key] value[key][d]
//                Rows x Vectors accumulators that stay in registers over all keys of a block
//
// Each vector of a key or value serves Rows multiply-adds. Both read keys and values where they
// lie, in their own type; where the instruction set has dot products of bfloat16 pairs, scores take
// keys and queries as they are.
//
// Up to four keys side by side share each vector of a query, since loading these would be the bound
// (from 30 to 34 GB/s for four rows of bfloat16 out of the second level of cache); values of
// bfloat16 are multiplied in pairs of keys (from 23 to 30).
//
// Keys side by side are a quarter of the block apart, and values are taken from its quarters in
// turn: four streams. While one block is worked on, the next is asked for, into the second level of
// cache, because the processor's own fetching stops at every page (1.35 times as fast); the pages
// after it are touched once, so that their translation is known by then. Streams and touching
// together: from 16 to 20 GB/s for four rows of 128 floats a key where memory gives 21, one Zen 4
// core. Into the first level it would be slower than not to ask, because the few buffers for misses
// of the first level would all wait for memory.

#include "sdpa/cpu/lanes.h"
#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

/// Accumulators of a tile: a power of two that leaves registers for the operands.
template <class S>
constexpr int kDecodeTile = S::kRows * S::kColumns >= 16 ? 16 : 8;

/// A vector of a row of keys or of a query, as dot products take it.
template <class S, typename Element>
struct DotOperand {
  using Query = float;
  static constexpr int kWidth = S::kLanes;

  template <typename From>
  static SDPA_INLINE auto load(const From* from) {
    return S::load(from);
  }

  template <typename From>
  static SDPA_INLINE auto load_part(const From* from, int count) {
    return S::load_part(from, count);
  }
};

template <class S>
  requires requires(const BFloat16* from) { S::load_pairs(from); }
struct DotOperand<S, BFloat16> {
  using Query = BFloat16;
  static constexpr int kWidth = 2 * S::kLanes;

  static SDPA_INLINE auto load(const BFloat16* from) { return S::load_pairs(from); }

  static SDPA_INLINE auto load_part(const BFloat16* from, int count) {
    return S::load_pairs_part(from, count);
  }
};

/// Whether these are two vectors of floats, of the even elements and the odd ones (one query
/// against 512 keys, eight heads, D64, one Sapphire Rapids core: from 61 to 39 us).
template <class S, typename Element>
constexpr bool kTakesHalves =
    !S::kHasBFloat16Dot && std::is_same_v<Element, BFloat16> && requires { typename S::Halves; };

/// Rows of keys or values of one block.
template <typename Element>
struct DecodeRows {
  const Element* data = nullptr;  ///< the row of the block's first key
  std::int64_t stride = 0;        ///< elements from a key to the next
  std::int64_t columns = 0;
  std::int64_t ahead = 0;  ///< elements from a key to the one that is asked for; 0: none
};

/// Asks for what lies `rows.ahead` elements after `row`, and where a page begins there, for the
/// first line of the page after the next.
template <typename Element>
SDPA_INLINE void prefetch_row(const DecodeRows<Element>& rows, const Element* row,
                              std::int64_t columns) {
  constexpr std::int64_t kSize = sizeof(Element), kLine = 64 / kSize, kPage = 4096;
  constexpr int kSecondLevel = 2;
  if (rows.ahead == 0) return;
  const Element* from = row + rows.ahead;
  if (static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(from) % kPage) <
      rows.stride * kSize)
    __builtin_prefetch(from + 2 * kPage / kSize, 0, kSecondLevel);
  for (std::int64_t c = 0; c < columns; c += kLine) __builtin_prefetch(from + c, 0, kSecondLevel);
}

/// Scores of Keys keys, `key` and those `spread` apart after it, for Rows queries kept
/// `query_stride` apart and padded with zeros. Keys from `last` on are replaced by the last one:
/// their scores mean nothing.
template <class S, int Rows, int Keys, typename Element, typename Query>
SDPA_INLINE void dot_tile(const DecodeRows<Element>& rows, int key, int spread, int last,
                          const Query* query, std::int64_t query_stride, float* scores,
                          std::int64_t score_stride) {
  using Operand = DotOperand<S, Element>;
  constexpr int kWidth = Operand::kWidth, kCount = Rows * Keys;
  constexpr int kBeside = Keys < 4 ? Keys : 4;
  const std::int64_t whole = rows.columns / kWidth * kWidth;
  const int rest = static_cast<int>(rows.columns - whole);
  typename S::Vec sum[kCount];
  unroll<kCount>([&](auto i) SDPA_INLINE_LAMBDA { sum[i] = S::zero(); });
  unroll<Keys / kBeside>([&](auto group) SDPA_INLINE_LAMBDA {
    constexpr int kFirst = group * kBeside;
    const Element* at[kBeside];
    unroll<kBeside>([&](auto k) SDPA_INLINE_LAMBDA {
      const int wanted = key + (kFirst + k) * spread;
      const std::int64_t index = wanted < last ? wanted : last - 1;
      at[k] = rows.data + index * rows.stride;
      prefetch_row(rows, at[k], rows.columns);
    });
    const auto multiply = [&](std::int64_t d, const auto& load) SDPA_INLINE_LAMBDA {
      decltype(Operand::load(query)) part[Rows];
      unroll<Rows>([&](auto r) SDPA_INLINE_LAMBDA {
        part[r] = Operand::load(query + r * query_stride + d);
      });
      unroll<kBeside>([&](auto k) SDPA_INLINE_LAMBDA {
        const auto element = load(at[k] + d);
        unroll<Rows>([&](auto r) SDPA_INLINE_LAMBDA {
          auto& to = sum[r * Keys + kFirst + k];
          to = S::multiply_add(part[r], element, to);
        });
      });
    };
    const auto load_whole = [](const Element* from)
                                SDPA_INLINE_LAMBDA { return Operand::load(from); };
    const auto load_rest = [&](const Element* from)
                               SDPA_INLINE_LAMBDA { return Operand::load_part(from, rest); };
    for (std::int64_t d = 0; d < whole; d += kWidth) multiply(d, load_whole);
    if (rest > 0) multiply(whole, load_rest);
  });
  alignas(64) float total[kCount];
  unroll<kCount / S::kLanes>([&](auto part) SDPA_INLINE_LAMBDA {
    typename S::Vec group[S::kLanes];
    unroll<S::kLanes>([&](auto i) SDPA_INLINE_LAMBDA { group[i] = sum[part * S::kLanes + i]; });
    S::store(total + part * S::kLanes, S::sum_rows(group));
  });
  unroll<kCount>([&](auto i) SDPA_INLINE_LAMBDA {
    scores[i / Keys * score_stride + key + i % Keys * spread] = total[i];
  });
}

/// scores[r][key] for Rows queries and keys [first, last); up to kDecodeTile more are written.
template <class S, int Rows, typename Element, typename Query>
void dot_rows(const DecodeRows<Element>& rows, int first, int last, const Query* query,
              std::int64_t query_stride, float* scores, std::int64_t score_stride) {
  constexpr int kKeys = kDecodeTile<S> / Rows;
  const int spread = (last - first + kKeys - 1) / kKeys;
  for (int key = first; key < first + spread; ++key)
    dot_tile<S, Rows, kKeys>(rows, key, spread, last, query, query_stride, scores, score_stride);
}

/// Rows x Vectors of the output from column `d` on.
template <class S, int Rows, int Vectors>
using OutTile = Tile<S, Rows, Vectors>;

/// tile[r][j] += p[r][key] value[key][d + j kLanes] over keys [first, last); only `width` columns
/// of the last vector exist.
template <class S, int Rows, int Vectors, typename Element>
SDPA_INLINE void add_values(OutTile<S, Rows, Vectors>& tile, const DecodeRows<Element>& rows,
                            int first, int last, std::int64_t d, int width,
                            const float* probabilities, std::int64_t probability_stride) {
  constexpr bool kInHalves = kTakesHalves<S, Element> && Vectors > 1;
  const auto add = [&](int key) SDPA_INLINE_LAMBDA {
    const Element* at = rows.data + key * rows.stride + d;
    prefetch_row(rows, at, Vectors * S::kLanes);
    typename S::Vec value[Vectors];
    if constexpr (kInHalves)
      unroll<Vectors / 2>([&](auto j) SDPA_INLINE_LAMBDA {
        const auto halves = S::load_pairs(at + 2 * j * S::kLanes);
        value[2 * j] = halves.even;
        value[2 * j + 1] = halves.odd;
      });
    else
      unroll<Vectors>([&](auto j) SDPA_INLINE_LAMBDA {
        value[j] = Vectors > 1 || width == S::kLanes ? S::load(at + j * S::kLanes)
                                                     : S::load_part(at, width);
      });
    unroll<Rows>([&](auto r) SDPA_INLINE_LAMBDA {
      const auto p = S::broadcast(probabilities[r * probability_stride + key]);
      unroll<Vectors>([&](auto j) SDPA_INLINE_LAMBDA {
        tile.v[r][j] = S::multiply_add(p, value[j], tile.v[r][j]);
      });
    });
  };
  const int quarter = (last - first + 3) / 4;
  for (int n = first; n < first + quarter; ++n)
    for (int key = n; key < last; key += quarter) add(key);
  if constexpr (kInHalves)
    for (auto& row : tile.v)
      unroll<Vectors / 2>([&](auto j)
                              SDPA_INLINE_LAMBDA { S::join_halves(row[2 * j], row[2 * j + 1]); });
}

/// The same for keys in pairs of bfloat16, from `first` on if that is even, else with a zero before
/// it. Vectors of the tile are in the order of S::interleave. Half the multiply-adds, and no
/// conversion to float.
template <class S, int Rows, int Vectors>
SDPA_INLINE void add_value_pairs(OutTile<S, Rows, Vectors>& tile, const DecodeRows<BFloat16>& rows,
                                 int first, int last, std::int64_t d, const BFloat16* probabilities,
                                 std::int64_t probability_stride) {
  constexpr int kWidth = 2 * S::kLanes;
  alignas(64) static constexpr BFloat16 kZeros[Vectors * S::kLanes] = {};
  for (int key = first & ~1; key < last; key += 2) {
    const BFloat16* at = rows.data + key * rows.stride + d;
    const BFloat16* low = key < first ? kZeros : at;
    const BFloat16* high = key + 1 < last ? at + rows.stride : kZeros;
    prefetch_row(rows, low, Vectors * S::kLanes);
    prefetch_row(rows, high, Vectors * S::kLanes);
    typename S::Pairs value[Vectors];
    unroll<Vectors / 2>([&](auto j) SDPA_INLINE_LAMBDA {
      S::interleave(S::load_pairs(low + j * kWidth), S::load_pairs(high + j * kWidth), value[2 * j],
                    value[2 * j + 1]);
    });
    unroll<Rows>([&](auto r) SDPA_INLINE_LAMBDA {
      BFloat16Pair pair;
      __builtin_memcpy(&pair, probabilities + r * probability_stride + key, sizeof pair);
      const auto p = S::broadcast(pair);
      unroll<Vectors>([&](auto j) SDPA_INLINE_LAMBDA {
        tile.v[r][j] = S::multiply_add(p, value[j], tile.v[r][j]);
      });
    });
  }
}

}  // namespace sdpa::cpu
