// SPDX-License-Identifier: MIT
#pragma once

// Gradients of what is added to the scores: the mask and the sinks. Each element of a gradient has
// one owner, which sums over all rows that share the element, in a fixed order.

#include "sdpa/metal/kernels/backward.h"

namespace sdpa {

/// dS of 8 queries of one head and one tile of keys, added to `sums`.
template <typename S>
METAL_FUNC void add_grad_scores(thread Fragment* sums, thread const BackwardInputs<S>& in,
                                constant AttentionParams& p, constant AttentionScalars& r,
                                Rows rows, long key, Place at) {
  const int step = S::tile() * kSide;
  const Block block = block_of(rows.query, rows.last_query, key, step);
  const int kind = classify_block<S>(p, in.classes, rows.batch, rows.head, block);
  if (kind == kSkip) return;
  QueryWalk<S> walk;
  start_query_walk<S>(walk, in, p, rows, at);
  walk.row.delta = delta_of<S>(in, p, rows.batch, rows.head, rows.row);
  Fragment grads[S::kTile], slopes[S::kTile];
  const uint seen = grad_tile<S>(
      grads, slopes, walk, in, p, r, rows, rows_from<S>(in.k, p.key, rows, key, p.kv_len, p.qk_dim),
      rows_from<S>(in.v, p.value, rows, key, p.kv_len, p.v_dim), key, kind, at);
  if (seen == 0 || !rows.is_mine) return;
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) sums[j] += grads[j];
}

/// Adds one tile of sums to the gradient of the mask, over queries or keys where it broadcasts.
template <typename S>
METAL_FUNC void store_grad_mask(device float* grad_mask, thread Fragment* sums,
                                constant AttentionParams& p, long key, bool is_mine, Place at) {
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) {
    Fragment sum = sums[j];
    if (p.mask_rows == 1) sum = Fragment(sum_of_column(sum.x), sum_of_column(sum.y));
    const long first = key + j * kSide + at.column;
    if (!is_mine || (p.mask_rows == 1 && at.row != 0)) continue;
    if (first < p.kv_len) grad_mask[first * p.grad_mask.column] += sum.x;
    if (first + 1 < p.kv_len) grad_mask[(first + 1) * p.grad_mask.column] += sum.y;
  }
}

/// Grid (tiles of keys, tiles of 8 queries, mask heads * mask batches), each 1 where the mask
/// broadcasts; a SIMD group a tile. It sums over all the heads, queries and keys that share it.
template <typename S>
[[kernel]] void grad_mask(
    const device typename S::Element* q [[buffer(0)]],
    const device typename S::Element* k [[buffer(1)]],
    const device typename S::Element* v [[buffer(2)]],
    const device typename S::Element* grad_out [[buffer(3)]], const device float* lse [[buffer(4)]],
    const device float* delta [[buffer(5)]], const device uchar* mask [[buffer(6)]],
    const device uchar* classes [[buffer(7)]], device float* grad [[buffer(8)]],
    constant AttentionParams& p [[buffer(9)]], constant AttentionScalars& r [[buffer(10)]],
    uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const Place at = place_of(lane);
  BackwardInputs<S> in;
  in.q = q;
  in.k = k;
  in.v = v;
  in.grad_out = grad_out;
  in.lse = lse;
  in.delta = delta;
  in.mask = mask;
  in.classes = classes;
  const int step = S::tile() * kSide;
  const long mask_head = group.z % p.mask_heads, mask_batch = group.z / p.mask_heads;
  const long own_query = long(group.y) * kSide, own_key = long(group.x) * step;
  const long last_query = p.mask_rows == 1 ? p.q_len : smaller(own_query + kSide, p.q_len);
  const long last_key = p.mask_columns == 1 ? p.kv_len : smaller(own_key + step, p.kv_len);
  Fragment sums[S::kTile];
  clear(sums, S::tile());
  for (long batch = mask_batch; batch < p.batch; batch += p.mask_batches)
    for (long head = mask_head; head < p.q_heads; head += p.mask_heads)
      for (long query = own_query; query < last_query; query += kSide)
        for (long key = own_key; key < last_key; key += step)
          add_grad_scores<S>(sums, in, p, r, rows_of_head(p, batch, head, query, at), key, at);

  const long row = smaller(own_query + at.row, p.mask_rows - 1);
  device float* grad_row = grad + offset(p.grad_mask, mask_batch, mask_head, row);
  if (p.mask_columns == 1) {
    float sum = 0;
    SDPA_UNROLL
    for (int j = 0; j < S::tile(); ++j) sum += sums[j].x + sums[j].y;
    sum = sum_of_row(sum);
    if (p.mask_rows == 1) sum = sum_of_column(sum);
    const bool is_owner =
        at.column == 0 && (p.mask_rows == 1 ? at.row == 0 : own_query + at.row < p.q_len);
    if (is_owner) *grad_row += sum;
  } else {
    store_grad_mask<S>(grad_row, sums, p, own_key, p.mask_rows == 1 || own_query + at.row < p.q_len,
                       at);
  }
}

/// Grid (q_heads, 1, 1); a SIMD group a head, lanes over queries.
template <typename S>
[[kernel]] void grad_sinks(const device uchar* sinks [[buffer(0)]],
                           const device float* lse [[buffer(1)]],
                           const device float* delta [[buffer(2)]],
                           device float* grad [[buffer(3)]],
                           constant AttentionParams& p [[buffer(4)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]]) {
  const long head = group.x;
  const float sink = sink_of(p, sinks, head);
  float sum = 0;
  for (long batch = 0; batch < p.batch; ++batch)
    for (long row = lane; row < p.q_len; row += kFlashLanes) {
      const float row_lse = lse[offset(p.lse, batch, head, row)];
      if (row_lse == -INFINITY) continue;  // saw nothing, not even the sink
      const float probability = exp2(sink - row_lse * kLog2OfE);
      sum -= probability * delta[(batch * p.q_heads + head) * p.q_len + row];
    }
  sum = simd_sum(sum);
  if (lane == 0) grad[head * p.grad_sinks_stride] += sum;
}

}  // namespace sdpa
