// SPDX-License-Identifier: MIT
#pragma once

// Backward, from the LSE that the forward pass left:
//
//   delta = rowsum(dO O) - dLSE                                         delta.h
//   P  = exp2(S - LSE);  dP = dropout(dO V^T);  dS = P (dP - delta)
//   dQ = scale dS' K        dS' = dS times the slope of the soft cap
//   dK = scale dS'^T Q;  dV = dropout(P)^T dO
//   dmask = dS, summed where the mask broadcasts;  dsink = -sum of P_sink delta
//
// Two large kernels and no atomics: `grad_query` owns 8 queries and walks the keys as the forward
// pass does; `grad_key_value` owns 8 keys and walks the queries of all heads of the group, so that
// shared keys need no sum over heads afterwards. Scores are computed in both (7 products instead of
// 5), because float atomics are emulated on these GPUs and would give another result every run.
// What is owned and what is summed up stay in registers; results wider than 128 columns (keys) or
// 256 (queries) are split into chunks of columns.

#include "sdpa/metal/kernels/forward.h"

namespace sdpa {

/// The tensors of the backward pass.
template <typename S>
struct BackwardInputs {
  const device typename S::Element* q;
  const device typename S::Element* k;
  const device typename S::Element* v;
  const device typename S::Element* grad_out;
  const device float* lse;
  const device float* delta;
  const device uchar* mask;
  const device uchar* classes;
};

/// What the backward pass knows of one query: the log-sum-exp in base 2, +infinity for a query that
/// saw nothing, so that its probabilities are 0; and delta.
struct RowStatistics {
  float lse, delta;
};

template <typename S>
METAL_FUNC float lse_of(thread const BackwardInputs<S>& in, constant AttentionParams& p, long batch,
                        long head, long row) {
  const float lse = in.lse[offset(p.lse, batch, head, row)];
  return lse == -INFINITY ? INFINITY : lse * kLog2OfE;
}

template <typename S>
METAL_FUNC float delta_of(thread const BackwardInputs<S>& in, constant AttentionParams& p,
                          long batch, long head, long row) {
  return in.delta[(batch * p.q_heads + head) * p.q_len + row];
}

template <typename S>
METAL_FUNC RowStatistics statistics_of(thread const BackwardInputs<S>& in,
                                       constant AttentionParams& p, long batch, long head,
                                       long row) {
  RowStatistics statistics;
  statistics.lse = lse_of<S>(in, p, batch, head, row);
  statistics.delta = delta_of<S>(in, p, batch, head, row);
  return statistics;
}

/// dS of one pair; a pair that is not seen has none, whatever dP is.
METAL_FUNC float grad_score(float score, float probability, float grad_probability, float delta) {
  return score == -INFINITY ? 0.0f : probability * (grad_probability - delta);
}

/// Eight queries that stay: Q, dO, and what they sum up.
template <typename S>
struct QueryWalk {
  Fragment query[S::kCachedQk];
  Fragment grad_out[S::kCachedV];
  RowStatistics row;
};

template <typename S>
METAL_FUNC void start_query_walk(thread QueryWalk<S>& walk, thread const BackwardInputs<S>& in,
                                 constant AttentionParams& p, Rows rows, Place at) {
  cache_row<S>(walk.query, in.q + offset(p.query, rows.batch, rows.head, rows.row), S::qk(),
               int(p.qk_dim), at);
  cache_row<S>(walk.grad_out, in.grad_out + offset(p.grad_out, rows.batch, rows.head, rows.row),
               S::v(), int(p.v_dim), at);
  walk.row.lse = lse_of<S>(in, p, rows.batch, rows.head, rows.row);
}

/// dS of one tile of keys (`grads`), and the slopes of the soft cap (`slopes`, where there is one).
/// Returns a bit for each key that one of the queries sees.
template <typename S, typename Pointer>
METAL_FUNC uint grad_tile(thread Fragment* grads, thread Fragment* slopes,
                          thread const QueryWalk<S>& walk, thread const BackwardInputs<S>& in,
                          constant AttentionParams& p, constant AttentionScalars& r, Rows rows,
                          Tile<Pointer> keys, Tile<Pointer> values, long key, int kind, Place at) {
  Fragment scores[S::kTile];
  const Pair pair = pair_of(rows, key);
  multiply_transposed<S>(scores, walk.query,
                         in.q + offset(p.query, rows.batch, rows.head, rows.row), int(p.qk_dim),
                         keys, S::qk(), at);
  scale_tile<S>(scores, r);
  if (S::has(kSoftcap)) {
    SDPA_UNROLL
    for (int j = 0; j < S::tile(); ++j)
      slopes[j] = Fragment(cap_slope<S>(r, scores[j].x), cap_slope<S>(r, scores[j].y));
  }
  const uint seen = mask_tile<S>(scores, p, in.mask, pair, kind, at);
  if (seen == 0) return seen;
  multiply_transposed<S>(grads, walk.grad_out,
                         in.grad_out + offset(p.grad_out, rows.batch, rows.head, rows.row),
                         int(p.v_dim), values, S::v(), at);
  drop_tile<S>(grads, p, pair, at);
  const float rescale = S::has(kDropout) ? r.dropout_rescale : 1.0f;
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) {
    const Fragment probability =
        Fragment(exp2(scores[j].x - walk.row.lse), exp2(scores[j].y - walk.row.lse));
    grads[j] =
        Fragment(grad_score(scores[j].x, probability.x, grads[j].x * rescale, walk.row.delta),
                 grad_score(scores[j].y, probability.y, grads[j].y * rescale, walk.row.delta));
  }
  return seen;
}

/// dQ += dS' K for one tile.
template <typename S, typename Pointer>
METAL_FUNC void add_grad_query(thread Fragment* sums, thread const QueryWalk<S>& walk,
                               thread const BackwardInputs<S>& in, constant AttentionParams& p,
                               constant AttentionScalars& r, Rows rows, Tile<Pointer> keys,
                               Tile<Pointer> values, long key, int kind, int first, Place at) {
  Fragment grads[S::kTile], slopes[S::kTile];
  const uint seen = grad_tile<S>(grads, slopes, walk, in, p, r, rows, keys, values, key, kind, at);
  if (seen == 0) return;
  if (S::has(kSoftcap)) {
    SDPA_UNROLL
    for (int j = 0; j < S::tile(); ++j) grads[j] *= slopes[j];
  }
  add_weighted_rows<S>(sums, grads, keys, first, S::out_qk(), seen, at);
}

/// dQ. Grid (tiles of queries, q_heads * chunks, batch).
template <typename S>
[[kernel]] void grad_query(
    const device typename S::Element* q [[buffer(0)]],
    const device typename S::Element* k [[buffer(1)]],
    const device typename S::Element* v [[buffer(2)]],
    const device typename S::Element* grad_out [[buffer(3)]], const device float* lse [[buffer(4)]],
    const device float* delta [[buffer(5)]], const device uchar* mask [[buffer(6)]],
    const device uchar* classes [[buffer(7)]], device typename S::Element* grad_q [[buffer(8)]],
    constant AttentionParams& p [[buffer(9)]], constant AttentionScalars& r [[buffer(10)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint simd_group [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  TG_ARRAY(typename S::Element, tiles, [S::kStagedElements]);
  const Place at = place_of(lane);
  const long head = group.y / S::chunks();
  const int first = int(group.y % S::chunks()) * S::out_qk();
  const long group_query = long(group.x) * S::groups() * kSide;
  const long last_group_query = smaller(group_query + S::groups() * kSide, p.q_len) - 1;
  const Rows rows = rows_of_head(p, group.z, head, group_query + long(simd_group) * kSide, at);
  const bool has_rows = rows.query < p.q_len;
  BackwardInputs<S> in;
  in.q = q;
  in.k = k;
  in.v = v;
  in.grad_out = grad_out;
  in.lse = lse;
  in.delta = delta;
  in.mask = mask;
  in.classes = classes;
  QueryWalk<S> walk;
  start_query_walk<S>(walk, in, p, rows, at);
  walk.row.delta = delta_of<S>(in, p, rows.batch, rows.head, rows.row);
  Fragment sums[S::kOutQk];
  clear(sums, S::out_qk());

  const int step = S::tile() * kSide;
  const KeyRange range = S::has(kStaged) || !has_rows ? keys_of<S>(p, group_query, last_group_query)
                                                      : keys_of<S>(p, rows.query, rows.last_query);
  for (long key = range.first / step * step; key < range.last; key += step) {
    const Block block = block_of(rows.query, rows.last_query, key, step);
    const int kind = has_rows ? classify_block<S>(p, classes, rows.batch, head, block) : int(kSkip);
    const Tile<const device typename S::Element*> keys =
        rows_from<S>(k, p.key, rows, key, p.kv_len, p.qk_dim);
    const Tile<const device typename S::Element*> values =
        rows_from<S>(v, p.value, rows, key, p.kv_len, p.v_dim);
    if (S::has(kStaged)) {
      const Block all = block_of(group_query, last_group_query, key, step);
      if (classify_block<S>(p, classes, rows.batch, head, all) == kSkip) continue;
      const uint thread_index = simd_group * kFlashLanes + lane;
      threadgroup_barrier(mem_flags::mem_threadgroup);  // the last tile has been used
      const auto near_keys = stage<S>(keys, &tiles[0], S::qk(), thread_index);
      const auto near_values =
          stage<S>(values, &tiles[0] + second_tile<S>(S::qk()), S::v(), thread_index);
      threadgroup_barrier(mem_flags::mem_threadgroup);  // the tile is there
      if (kind != kSkip)
        add_grad_query<S>(sums, walk, in, p, r, rows, near_keys, near_values, key, kind, first, at);
    } else if (kind != kSkip) {
      add_grad_query<S>(sums, walk, in, p, r, rows, keys, values, key, kind, first, at);
    }
  }
  if (rows.is_mine)
    store_row(grad_q + offset(p.grad_query, rows.batch, head, rows.row), sums, r.scale, first,
              S::out_qk(), int(p.qk_dim), at);
}

/// Eight keys that stay, and the sums of their gradients.
template <typename S>
struct KeyWalk {
  Fragment key[S::kCachedQk];
  Fragment value[S::kCachedV];
  Fragment grad_key[S::kOutQk];
  Fragment grad_value[S::kOutV];
  const device typename S::Element* key_row;
  const device typename S::Element* value_row;
  long batch, head, first_key;  ///< head: of the query
  long row;                     ///< the lane's key; it exists
  int chunk;
};

/// Probabilities of a tile of queries from scores; rows are keys. Returns a bit for each query that
/// sees one of the keys; `scores` keep -infinity where a pair is not seen.
template <typename S>
METAL_FUNC uint mask_queries(thread Fragment* scores, constant AttentionParams& p,
                             const device uchar* mask, Pair first, int kind, Place at) {
  if (kind == kFull) return ~0u;
  uint seen = 0;
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) {
    Pair pair = first;
    const int query = j * kSide + at.column;
    pair.query = first.query + query;
    scores[j].x = masked<S>(p, mask, pair, scores[j].x);
    pair.query += 1;
    scores[j].y = masked<S>(p, mask, pair, scores[j].y);
    seen |= uint(scores[j].x != -INFINITY) << query | uint(scores[j].y != -INFINITY) << (query + 1);
  }
  return simd_or(seen);
}

/// One tile of queries of one head: dV += dropout(P)^T dO, dK += dS'^T Q.
template <typename S, typename Pointer>
METAL_FUNC void walk_queries(thread KeyWalk<S>& walk, thread const BackwardInputs<S>& in,
                             constant AttentionParams& p, constant AttentionScalars& r,
                             Tile<Pointer> queries, Tile<Pointer> grad_outs, long query, int kind,
                             Place at) {
  Fragment scores[S::kTile], grads[S::kTile], slopes[S::kTile];
  Pair pair;
  pair.batch = walk.batch;
  pair.head = walk.head;
  pair.query = query;
  pair.key = walk.first_key + at.row;
  multiply_transposed<S>(scores, walk.key, walk.key_row, int(p.qk_dim), queries, S::qk(), at);
  scale_tile<S>(scores, r);
  if (S::has(kSoftcap)) {
    SDPA_UNROLL
    for (int j = 0; j < S::tile(); ++j)
      slopes[j] = Fragment(cap_slope<S>(r, scores[j].x), cap_slope<S>(r, scores[j].y));
  }
  const uint seen = mask_queries<S>(scores, p, in.mask, pair, kind, at);
  if (seen == 0) return;
  multiply_transposed<S>(grads, walk.value, walk.value_row, int(p.v_dim), grad_outs, S::v(), at);

  const float rescale = S::has(kDropout) ? r.dropout_rescale : 1.0f;
  uint2 kept = uint2(3, 3);
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) {
    pair.query = query + j * kSide + at.column;
    if (S::has(kDropout) && j % 2 == 0) kept = kept_along_queries(p, pair, at);
    const uint kept_here = j % 2 == 0 ? kept.x : kept.y;
    const RowStatistics first =
        statistics_of<S>(in, p, walk.batch, walk.head, smaller(pair.query, p.q_len - 1));
    const RowStatistics second =
        statistics_of<S>(in, p, walk.batch, walk.head, smaller(pair.query + 1, p.q_len - 1));
    const Fragment probability =
        Fragment(exp2(scores[j].x - first.lse), exp2(scores[j].y - second.lse));
    const Fragment grad_probability = keep(grads[j], kept_here) * rescale;
    grads[j] = Fragment(grad_score(scores[j].x, probability.x, grad_probability.x, first.delta),
                        grad_score(scores[j].y, probability.y, grad_probability.y, second.delta));
    if (S::has(kSoftcap)) grads[j] *= slopes[j];
    scores[j] = keep(probability, kept_here);
  }
  if (S::has(kGradValue))
    add_weighted_rows<S>(walk.grad_value, scores, grad_outs, walk.chunk * S::out_v(), S::out_v(),
                         seen, at);
  if (S::has(kGradKey))
    add_weighted_rows<S>(walk.grad_key, grads, queries, walk.chunk * S::out_qk(), S::out_qk(), seen,
                         at);
}

/// dK and dV. Grid (tiles of keys, kv_heads * chunks, batch).
template <typename S>
[[kernel]] void grad_key_value(
    const device typename S::Element* q [[buffer(0)]],
    const device typename S::Element* k [[buffer(1)]],
    const device typename S::Element* v [[buffer(2)]],
    const device typename S::Element* grad_out [[buffer(3)]], const device float* lse [[buffer(4)]],
    const device float* delta [[buffer(5)]], const device uchar* mask [[buffer(6)]],
    const device uchar* classes [[buffer(7)]], device typename S::Element* grad_k [[buffer(8)]],
    device typename S::Element* grad_v [[buffer(9)]], constant AttentionParams& p [[buffer(10)]],
    constant AttentionScalars& r [[buffer(11)]], uint3 group [[threadgroup_position_in_grid]],
    uint simd_group [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  TG_ARRAY(typename S::Element, tiles, [S::kStagedElements]);
  const Place at = place_of(lane);
  const long kv_head = group.y / S::chunks(), batch = group.z;
  const long group_key = long(group.x) * S::groups() * kSide;
  const long last_group_key = smaller(group_key + S::groups() * kSide, p.kv_len) - 1;
  BackwardInputs<S> in;
  in.q = q;
  in.k = k;
  in.v = v;
  in.grad_out = grad_out;
  in.lse = lse;
  in.delta = delta;
  in.mask = mask;
  in.classes = classes;
  KeyWalk<S> walk;
  walk.batch = batch;
  walk.chunk = int(group.y % S::chunks());
  walk.first_key = group_key + long(simd_group) * kSide;
  walk.row = smaller(walk.first_key + at.row, p.kv_len - 1);
  walk.key_row = k + offset(p.key, batch, kv_head, walk.row);
  walk.value_row = v + offset(p.value, batch, kv_head, walk.row);
  cache_row<S>(walk.key, walk.key_row, S::qk(), int(p.qk_dim), at);
  cache_row<S>(walk.value, walk.value_row, S::v(), int(p.v_dim), at);
  clear(walk.grad_key, S::out_qk());
  clear(walk.grad_value, S::out_v());
  const bool has_keys = walk.first_key < p.kv_len;
  const long last_key = smaller(walk.first_key + kSide, p.kv_len) - 1;

  const int step = S::tile() * kSide;
  const KeyRange range = S::has(kStaged) || !has_keys ? queries_of<S>(p, group_key, last_group_key)
                                                      : queries_of<S>(p, walk.first_key, last_key);
  const long heads = p.q_heads / p.kv_heads;
  for (walk.head = kv_head * heads; walk.head < (kv_head + 1) * heads; ++walk.head)
    for (long query = range.first / step * step; query < range.last; query += step) {
      const Block block =
          block_of(query, query + step - 1, walk.first_key, int(last_key - walk.first_key + 1));
      const int kind =
          has_keys ? classify_block<S>(p, classes, batch, walk.head, block) : int(kSkip);
      const Tile<const device typename S::Element*> queries = make_tile(
          q + offset(p.query, batch, walk.head, query), p.query.row, p.q_len - query, p.qk_dim);
      const Tile<const device typename S::Element*> grad_outs =
          make_tile(grad_out + offset(p.grad_out, batch, walk.head, query), p.grad_out.row,
                    p.q_len - query, p.v_dim);
      if (S::has(kStaged)) {
        const Block all =
            block_of(query, query + step - 1, group_key, int(last_group_key - group_key + 1));
        if (classify_block<S>(p, classes, batch, walk.head, all) == kSkip) continue;
        const uint thread_index = simd_group * kFlashLanes + lane;
        threadgroup_barrier(mem_flags::mem_threadgroup);  // the last tile has been used
        const auto near_queries = stage<S>(queries, &tiles[0], S::qk(), thread_index);
        const auto near_grads =
            stage<S>(grad_outs, &tiles[0] + second_tile<S>(S::qk()), S::v(), thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);  // the tile is there
        if (kind != kSkip)
          walk_queries<S>(walk, in, p, r, near_queries, near_grads, query, kind, at);
      } else if (kind != kSkip) {
        walk_queries<S>(walk, in, p, r, queries, grad_outs, query, kind, at);
      }
    }
  if (walk.first_key + at.row >= p.kv_len) return;
  if (S::has(kGradKey))
    store_row(grad_k + offset(p.grad_key, batch, kv_head, walk.row), walk.grad_key, r.scale,
              walk.chunk * S::out_qk(), S::out_qk(), int(p.qk_dim), at);
  if (S::has(kGradValue))
    store_row(grad_v + offset(p.grad_value, batch, kv_head, walk.row), walk.grad_value,
              S::has(kDropout) ? r.dropout_rescale : 1.0f, walk.chunk * S::out_v(), S::out_v(),
              int(p.v_dim), at);
}

}  // namespace sdpa
