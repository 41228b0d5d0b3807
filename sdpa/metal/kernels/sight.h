// SPDX-License-Identifier: MIT
#pragma once

// Sight: which pairs of query and key count, and by how much. Positions (length, causality,
// window), masks and dropout; the same functions in every kernel, so that all passes agree.

#include "sdpa/metal/kernels/tile.h"

namespace sdpa {

/// Keys [first, last).
struct KeyRange {
  long first, last;
};

/// The keys that positions let the queries from `query` to `last_query` see, all together.
template <typename S>
METAL_FUNC KeyRange keys_of(constant AttentionParams& p, long query, long last_query) {
  KeyRange range;
  range.first = 0;
  range.last = p.kv_len;
  if (S::has(kBand)) {
    range.first = larger(range.first, query + p.diagonal - p.left);
    range.last = smaller(range.last, last_query + p.diagonal + p.right + 1);
  }
  return range;
}

/// The queries that may see one of the keys from `key` to `last_key`.
template <typename S>
METAL_FUNC KeyRange queries_of(constant AttentionParams& p, long key, long last_key) {
  KeyRange range;
  range.first = 0;
  range.last = p.q_len;
  if (S::has(kBand)) {
    range.first = larger(range.first, key - p.diagonal - p.right);
    range.last = smaller(range.last, last_key - p.diagonal + p.left + 1);
  }
  return range;
}

/// Some queries [query, last_query] and some keys [key, last_key], as one block of scores.
struct Block {
  long query, last_query, key, last_key;
};

/// What positions and the classified mask say about a whole block.
template <typename S>
METAL_FUNC int classify_block(constant AttentionParams& p, const device uchar* classes, long batch,
                              long head, Block block) {
  int kind = S::mask_kind() == kKindNone || S::has(kClasses) ? kFull : kPartial;
  if (block.last_key >= p.kv_len || block.last_query >= p.q_len) kind = kPartial;
  if (S::has(kBand)) {
    const KeyRange any = keys_of<S>(p, block.query, block.last_query);
    if (block.key >= any.last || block.last_key < any.first) return kSkip;
    const long first_of_last = block.last_query + p.diagonal - p.left;
    const long last_of_first = block.query + p.diagonal + p.right;
    if (block.key < first_of_last || block.last_key > last_of_first) kind = kPartial;
  }
  if (S::has(kClasses)) {
    const long row = smaller(block.query / kClassTile, p.class_rows - 1);
    const long column = smaller(block.key / kClassTile, p.class_columns - 1);
    const int found =
        classes[batch * p.class_batch + head * p.class_head + row * p.class_columns + column];
    kind = min(kind, found);
  }
  return kind;
}

/// One element of the mask as a bias in base 2.
template <typename S>
METAL_FUNC float mask_bias(const device uchar* mask, long element) {
  switch (S::mask_kind()) {
    case kKindBool:
      return mask[element] != 0 ? 0.0f : -INFINITY;
    case kKindFloat32:
      return ((const device float*)mask)[element] * kLog2OfE;
    case kKindFloat16:
      return float(((const device half*)mask)[element]) * kLog2OfE;
    default:
      return float(((const device bfloat*)mask)[element]) * kLog2OfE;
  }
}

/// One query and one key of one head.
struct Pair {
  long batch, head, query, key;
};

/// The score after positions and the mask: -infinity if the pair is not seen.
template <typename S>
METAL_FUNC float masked(constant AttentionParams& p, const device uchar* mask, Pair pair,
                        float score) {
  if (pair.key >= p.kv_len || pair.query >= p.q_len) return -INFINITY;
  if (S::has(kBand)) {
    const long distance = pair.key - pair.query - p.diagonal;
    if (distance > p.right || distance < -p.left) return -INFINITY;
  }
  if (S::mask_kind() == kKindNone) return score;
  const float bias = mask_bias<S>(
      mask, offset(p.mask, pair.batch, pair.head, pair.query) + pair.key * p.mask.column);
  return bias == -INFINITY ? -INFINITY : score + bias;
}

/// A raw product as a score in base 2.
template <typename S>
METAL_FUNC float scaled(constant AttentionScalars& r, float product) {
  if (!S::has(kSoftcap)) return product * (r.scale * kLog2OfE);
  return precise::tanh(product * (r.scale / r.softcap)) * (r.softcap * kLog2OfE);
}

/// Raw products of a tile as scores.
template <typename S>
METAL_FUNC void scale_tile(thread Fragment* scores, constant AttentionScalars& r) {
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j)
    scores[j] = Fragment(scaled<S>(r, scores[j].x), scaled<S>(r, scores[j].y));
}

/// Hides the pairs of a tile that are not seen, if there may be any. `first` is the tile's first
/// key and the lane's query. Returns a bit for each key that one of the eight queries sees.
template <typename S>
METAL_FUNC uint mask_tile(thread Fragment* scores, constant AttentionParams& p,
                          const device uchar* mask, Pair first, int kind, Place at) {
  if (kind == kFull) return ~0u;
  uint seen = 0;
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) {
    Pair pair = first;
    const int key = j * kSide + at.column;
    pair.key = first.key + key;
    scores[j].x = masked<S>(p, mask, pair, scores[j].x);
    pair.key += 1;
    scores[j].y = masked<S>(p, mask, pair, scores[j].y);
    seen |= uint(scores[j].x != -INFINITY) << key | uint(scores[j].y != -INFINITY) << (key + 1);
  }
  return simd_or(seen);
}

/// A head's sink in base 2.
METAL_FUNC float sink_of(constant AttentionParams& p, const device uchar* sinks, long head) {
  const long element = head * p.sinks_stride;
  if (p.sinks_kind == kKindFloat32) return ((const device float*)sinks)[element] * kLog2OfE;
  if (p.sinks_kind == kKindFloat16) return float(((const device half*)sinks)[element]) * kLog2OfE;
  return float(((const device bfloat*)sinks)[element]) * kLog2OfE;
}

/// The derivative of the soft cap, from the capped score before the mask.
template <typename S>
METAL_FUNC float cap_slope(constant AttentionScalars& r, float score) {
  if (!S::has(kSoftcap)) return 1.0f;
  const float bent = score / (r.softcap * kLog2OfE);
  return 1 - bent * bent;
}

/// Four bits: which of the keys 4n ... 4n+3 around `key` a query keeps.
METAL_FUNC uint kept_of_four(constant AttentionParams& p, Pair pair) {
  PhiloxBlock counter;
  counter.x = uint(pair.key) >> 2;
  counter.y = uint(pair.query);
  counter.z = uint(pair.batch * p.q_heads + pair.head + p.first_head);
  counter.w = uint(p.dropout_offset);
  const PhiloxBlock word = philox(counter, uint(p.seed_low), uint(p.seed_high));
  const uint threshold = uint(p.dropout_threshold);
  return uint(word.x >= threshold) | uint(word.y >= threshold) << 1 |
         uint(word.z >= threshold) << 2 | uint(word.w >= threshold) << 3;
}

/// Dropout of two fragments whose rows are queries. Two lanes share four keys: one draws for the
/// first fragment, its neighbour for the second.
METAL_FUNC uint2 kept_along_keys(constant AttentionParams& p, Pair first, Place at) {
  const bool second = (at.column & 2) != 0;
  Pair pair = first;
  pair.key += second ? kSide : 0;
  const uint mine = kept_of_four(p, pair);
  const uint other = simd_shuffle_xor(mine, ushort(1));
  return uint2((second ? other : mine) >> (at.column & 3),
               (second ? mine : other) >> (at.column & 3));
}

/// Dropout of two fragments whose rows are keys. Four lanes share four keys: each draws for one of
/// the two queries of one of the two fragments, and leaves its four bits for all.
METAL_FUNC uint2 kept_along_queries(constant AttentionParams& p, Pair first, Place at) {
  const int turn = at.row & 3;
  Pair pair = first;
  pair.query += (turn >> 1) * kSide + (turn & 1);
  uint all = kept_of_four(p, pair) << (4 * turn);
  all |= simd_shuffle_xor(all, ushort(2));
  all |= simd_shuffle_xor(all, ushort(4));
  const uint mine = all >> turn;
  return uint2((mine & 1) | (mine >> 3 & 2), (mine >> 8 & 1) | (mine >> 11 & 2));
}

/// Zero where bit 0 or 1 is not set.
METAL_FUNC Fragment keep(Fragment values, uint bits) {
  return Fragment((bits & 1) != 0 ? values.x : 0.0f, (bits & 2) != 0 ? values.y : 0.0f);
}

/// Dropout of a tile of probabilities; the factor for those that are kept comes later.
template <typename S>
METAL_FUNC void drop_tile(thread Fragment* values, constant AttentionParams& p, Pair first,
                          Place at) {
  if (!S::has(kDropout)) return;
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); j += 2) {
    Pair pair = first;
    pair.key = first.key + j * kSide + at.column;
    const uint2 kept = kept_along_keys(p, pair, at);
    values[j] = keep(values[j], kept.x);
    if (j + 1 < S::tile()) values[j + 1] = keep(values[j + 1], kept.y);
  }
}

}  // namespace sdpa
