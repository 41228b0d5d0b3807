// SPDX-License-Identifier: MIT
#pragma once

// Forward:
//
//   for each tile of keys that the rows may see:
//     S = scale Q K^T, capped, masked       base 2
//     m' = max(m, rowmax S);  P = exp2(S - m')
//     O = O exp2(m - m') + dropout(P) V;  l = l exp2(m - m') + rowsum P;  m = m'
//   out = O / l;  LSE = ln 2 (m + log2 l)
//
// A SIMD group owns 8 queries of one head and walks the keys in tiles of 8 to 32. Q (up to 96
// dimensions, or 128 beside 128 of O), O, m and l stay in registers. K and V come straight from
// device memory (Apple9 on: the four SIMD groups of a threadgroup read the same lines at about the
// same time, so the cache serves three of them) or through threadgroup memory, once for 32 queries
// (Apple7 and 8). The row sum is kept per lane and added up once, at the end.
//
// Where rows are few (decoding), a SIMD group owns up to 8 rows of all heads of a group, which
// share their keys, and one part of the keys; decode.h adds up the parts.

#include "sdpa/metal/kernels/sight.h"

namespace sdpa {

/// What a SIMD group works on, and its lane's row in it.
struct Rows {
  long batch, kv_head;
  long query, last_query;  ///< of the SIMD group
  long head, row;          ///< of the lane: a head and a query that exist
  bool is_mine;            ///< false: the lane repeats the last row and stores nothing
};

/// Eight queries of one head, from `query` on.
METAL_FUNC Rows rows_of_head(constant AttentionParams& p, long batch, long head, long query,
                             Place at) {
  Rows rows;
  rows.batch = batch;
  rows.kv_head = head / (p.q_heads / p.kv_heads);
  rows.query = query;
  rows.last_query = smaller(query + kSide, p.q_len) - 1;
  rows.head = head;
  rows.row = smaller(query + at.row, p.q_len - 1);
  rows.is_mine = query + at.row < p.q_len;
  return rows;
}

/// The lane's query and a tile's first key.
METAL_FUNC Pair pair_of(Rows rows, long key) {
  Pair pair;
  pair.batch = rows.batch;
  pair.head = rows.head;
  pair.query = rows.row;
  pair.key = key;
  return pair;
}

METAL_FUNC Block block_of(long query, long last_query, long key, int keys) {
  Block block;
  block.query = query;
  block.last_query = last_query;
  block.key = key;
  block.last_key = key + keys - 1;
  return block;
}

/// What stays in registers from tile to tile.
template <typename S>
struct Walk {
  Fragment query[S::kCachedQuery];
  Fragment out[S::kOutV];
  OnlineSoftmax softmax;
};

template <typename S>
METAL_FUNC void start_walk(thread Walk<S>& walk, constant AttentionParams& p,
                           const device typename S::Element* q, Rows rows, Place at) {
  if (rows.is_mine)
    cache_row<S>(walk.query, q + offset(p.query, rows.batch, rows.head, rows.row), S::qk(),
                 int(p.qk_dim), at, S::query_limit());
  else
    clear(walk.query, S::kCachedQuery);
  clear(walk.out, S::out_v());
  walk.softmax.max = -INFINITY;
  walk.softmax.sum = 0;
}

/// A sink is a logit that was seen before all keys. One lane of the row counts it.
template <typename S>
METAL_FUNC void see_sink(thread Walk<S>& walk, constant AttentionParams& p,
                         const device uchar* sinks, Rows rows, Place at) {
  walk.softmax.max = sink_of(p, sinks, rows.head);
  walk.softmax.sum = at.column == 0 ? 1.0f : 0.0f;
}

/// Scores become probabilities; what was summed up before is brought to the new maximum.
template <typename S>
METAL_FUNC void update_softmax(thread Walk<S>& walk, thread Fragment* scores) {
  float highest = walk.softmax.max;
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) highest = max(highest, max(scores[j].x, scores[j].y));
  highest = max_of_row(highest);
  const float factor = softmax_factor(walk.softmax, highest);
  const float base = softmax_base(highest);
  walk.softmax.max = highest;
  walk.softmax.sum *= factor;
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) {
    scores[j] = Fragment(exp2(scores[j].x - base), exp2(scores[j].y - base));
    walk.softmax.sum += scores[j].x + scores[j].y;
  }
  SDPA_UNROLL
  for (int d = 0; d < S::out_v(); ++d) walk.out[d] *= factor;
}

/// The tensors of the forward pass.
template <typename S>
struct ForwardInputs {
  const device typename S::Element* q;
  const device typename S::Element* k;
  const device typename S::Element* v;
  const device uchar* mask;
  const device uchar* classes;
};

/// One tile of keys.
template <typename S, typename Pointer>
METAL_FUNC void walk_tile(thread Walk<S>& walk, thread const ForwardInputs<S>& in,
                          constant AttentionParams& p, constant AttentionScalars& r, Rows rows,
                          Tile<Pointer> keys, Tile<Pointer> values, long key, int kind, int first,
                          Place at) {
  Fragment scores[S::kTile];
  const Pair pair = pair_of(rows, key);
  multiply_transposed<S>(scores, walk.query,
                         in.q + offset(p.query, rows.batch, rows.head, rows.row), int(p.qk_dim),
                         keys, S::qk(), at, S::query_limit());
  scale_tile<S>(scores, r);
  const uint seen = mask_tile<S>(scores, p, in.mask, pair, kind, at);
  if (seen == 0) return;
  update_softmax<S>(walk, scores);
  drop_tile<S>(scores, p, pair, at);
  add_weighted_rows<S>(walk.out, scores, values, first, S::out_v(), seen, at);
}

/// The rows of K or V from `key` on, in device memory.
template <typename S>
METAL_FUNC Tile<const device typename S::Element*> rows_from(const device
                                                             typename S::Element* tensor,
                                                             constant RowStrides& strides,
                                                             Rows rows, long key, long kv_len,
                                                             long columns) {
  return make_tile(tensor + offset(strides, rows.batch, rows.kv_head, key), strides.row,
                   kv_len - key, columns);
}

/// Walks the keys [range.first, range.last) by one SIMD group on its own.
template <typename S>
METAL_FUNC void walk_directly(thread Walk<S>& walk, thread const ForwardInputs<S>& in,
                              constant AttentionParams& p, constant AttentionScalars& r, Rows rows,
                              KeyRange range, int first, Place at) {
  const int step = S::tile() * kSide;
  for (long key = range.first / step * step; key < range.last; key += step) {
    const Block block = block_of(rows.query, rows.last_query, key, step);
    const int kind = classify_block<S>(p, in.classes, rows.batch, rows.head, block);
    if (kind == kSkip) continue;
    walk_tile<S>(walk, in, p, r, rows, rows_from<S>(in.k, p.key, rows, key, p.kv_len, p.qk_dim),
                 rows_from<S>(in.v, p.value, rows, key, p.kv_len, p.v_dim), key, kind, first, at);
  }
}

/// Walks the keys that `group_query` ... `last_group_query` may see, by all SIMD groups of a
/// threadgroup, which copy each tile together.
template <typename S, typename Target>
METAL_FUNC void walk_together(thread Walk<S>& walk, thread const ForwardInputs<S>& in,
                              constant AttentionParams& p, constant AttentionScalars& r, Rows rows,
                              long group_query, Target tiles, int first, uint thread_index,
                              Place at) {
  const int step = S::tile() * kSide;
  const long last_group_query = smaller(group_query + S::groups() * kSide, p.q_len) - 1;
  const KeyRange range = keys_of<S>(p, group_query, last_group_query);
  for (long key = range.first / step * step; key < range.last; key += step) {
    const Block all = block_of(group_query, last_group_query, key, step);
    if (classify_block<S>(p, in.classes, rows.batch, rows.head, all) == kSkip) continue;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the last tile has been used
    const Tile<Target> keys = stage<S>(rows_from<S>(in.k, p.key, rows, key, p.kv_len, p.qk_dim),
                                       tiles, S::qk(), thread_index);
    const Tile<Target> values = stage<S>(rows_from<S>(in.v, p.value, rows, key, p.kv_len, p.v_dim),
                                         tiles + second_tile<S>(S::qk()), S::v(), thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the tile is there
    const Block mine = block_of(rows.query, rows.last_query, key, step);
    const int kind = rows.query < p.q_len
                         ? classify_block<S>(p, in.classes, rows.batch, rows.head, mine)
                         : int(kSkip);
    if (kind != kSkip) walk_tile<S>(walk, in, p, r, rows, keys, values, key, kind, first, at);
  }
}

/// Grid (tiles of queries, q_heads * chunks, batch).
template <typename S>
[[kernel]] void forward(
    const device typename S::Element* q [[buffer(0)]],
    const device typename S::Element* k [[buffer(1)]],
    const device typename S::Element* v [[buffer(2)]], const device uchar* mask [[buffer(3)]],
    const device uchar* sinks [[buffer(4)]], const device uchar* classes [[buffer(5)]],
    device typename S::Element* out [[buffer(6)]], device float* lse [[buffer(7)]],
    constant AttentionParams& p [[buffer(8)]], constant AttentionScalars& r [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint simd_group [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  TG_ARRAY(typename S::Element, tiles, [S::kStagedElements]);
  const Place at = place_of(lane);
  const long head = group.y / S::chunks();
  const int chunk = int(group.y % S::chunks());
  const long group_query = long(group.x) * S::groups() * kSide;
  const long query = group_query + long(simd_group) * kSide;
  const Rows rows = rows_of_head(p, group.z, head, query, at);
  const int first = chunk * S::out_v();
  ForwardInputs<S> in;
  in.q = q;
  in.k = k;
  in.v = v;
  in.mask = mask;
  in.classes = classes;

  Walk<S> walk;
  start_walk<S>(walk, p, q, rows, at);
  if (S::has(kSinks)) see_sink<S>(walk, p, sinks, rows, at);
  if (S::has(kStaged))
    walk_together<S>(walk, in, p, r, rows, group_query, &tiles[0], first,
                     simd_group * kFlashLanes + lane, at);
  else if (query < p.q_len)
    walk_directly<S>(walk, in, p, r, rows, keys_of<S>(p, rows.query, rows.last_query), first, at);

  walk.softmax.sum = sum_of_row(walk.softmax.sum);
  if (!rows.is_mine) return;
  const float factor =
      softmax_normalizer(walk.softmax) * (S::has(kDropout) ? r.dropout_rescale : 1.0f);
  store_row(out + offset(p.out, rows.batch, head, rows.row), walk.out, factor, first, S::out_v(),
            int(p.v_dim), at);
  if (S::has(kLse) && chunk == 0 && at.column == 0)
    lse[offset(p.lse, rows.batch, head, rows.row)] = log_sum_exp(walk.softmax);
}

}  // namespace sdpa
