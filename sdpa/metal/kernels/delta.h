// SPDX-License-Identifier: MIT
#pragma once

// delta = rowsum(dO O) - dLSE, which is also rowsum(P dP) - dLSE: what the softmax subtracts from
// the gradient of every probability of a row.
//
// The first form costs next to nothing but takes O as it was rounded. Where a row has few keys, its
// gradients are small differences of large numbers, and 16 bits of O are too few for the accuracy
// that is promised: short 16-bit problems compute the second form.

#include "sdpa/metal/kernels/backward.h"

namespace sdpa {

/// Stores the delta of a row. That of a row which saw nothing has no meaning and no reader.
template <typename S>
METAL_FUNC void store_delta(device float* delta, const device float* grad_lse,
                            constant AttentionParams& p, Pair row, float sum) {
  if (S::has(kGradLse)) sum -= grad_lse[offset(p.grad_lse, row.batch, row.head, row.query)];
  delta[(row.batch * p.q_heads + row.head) * p.q_len + row.query] = sum;
}

/// From the output. Grid (ceil(q_len / groups), q_heads, batch); a SIMD group a row.
template <typename S>
[[kernel]] void delta_of_rows(const device typename S::Element* out [[buffer(0)]],
                              const device typename S::Element* grad_out [[buffer(1)]],
                              const device float* grad_lse [[buffer(2)]],
                              device float* delta [[buffer(3)]],
                              constant AttentionParams& p [[buffer(4)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint simd_group [[simdgroup_index_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
  Pair row;
  row.batch = group.z;
  row.head = group.y;
  row.query = long(group.x) * S::groups() + simd_group;
  if (row.query >= p.q_len) return;
  const device typename S::Element* o = out + offset(p.out, row.batch, row.head, row.query);
  const device typename S::Element* go =
      grad_out + offset(p.grad_out, row.batch, row.head, row.query);
  float sum = 0;
  for (int d = int(lane); d < p.v_dim; d += kFlashLanes) sum += float(o[d]) * float(go[d]);
  sum = simd_sum(sum);
  if (lane == 0) store_delta<S>(delta, grad_lse, p, row, sum);
}

/// From the probabilities. Grid (tiles of queries, q_heads, batch); a SIMD group 8 queries.
template <typename S>
[[kernel]] void delta_of_scores(
    const device typename S::Element* q [[buffer(0)]],
    const device typename S::Element* k [[buffer(1)]],
    const device typename S::Element* v [[buffer(2)]],
    const device typename S::Element* grad_out [[buffer(3)]], const device float* lse [[buffer(4)]],
    const device float* grad_lse [[buffer(5)]], const device uchar* mask [[buffer(6)]],
    const device uchar* classes [[buffer(7)]], device float* delta [[buffer(8)]],
    constant AttentionParams& p [[buffer(9)]], constant AttentionScalars& r [[buffer(10)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint simd_group [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const Place at = place_of(lane);
  const long query = (long(group.x) * S::groups() + simd_group) * kSide;
  if (query >= p.q_len) return;
  const Rows rows = rows_of_head(p, group.z, group.y, query, at);
  BackwardInputs<S> in;
  in.q = q;
  in.k = k;
  in.v = v;
  in.grad_out = grad_out;
  in.lse = lse;
  in.mask = mask;
  in.classes = classes;
  QueryWalk<S> walk;
  start_query_walk<S>(walk, in, p, rows, at);
  walk.row.delta = 0;

  const int step = S::tile() * kSide;
  const KeyRange range = keys_of<S>(p, rows.query, rows.last_query);
  float sum = 0;
  for (long key = range.first / step * step; key < range.last; key += step) {
    const Block block = block_of(rows.query, rows.last_query, key, step);
    const int kind = classify_block<S>(p, classes, rows.batch, rows.head, block);
    if (kind == kSkip) continue;
    Fragment products[S::kTile], slopes[S::kTile];
    const uint seen =
        grad_tile<S>(products, slopes, walk, in, p, r, rows,
                     rows_from<S>(k, p.key, rows, key, p.kv_len, p.qk_dim),
                     rows_from<S>(v, p.value, rows, key, p.kv_len, p.v_dim), key, kind, at);
    if (seen == 0) continue;
    SDPA_UNROLL
    for (int j = 0; j < S::tile(); ++j) sum += products[j].x + products[j].y;
  }
  sum = sum_of_row(sum);
  if (rows.is_mine && at.column == 0) store_delta<S>(delta, grad_lse, p, pair_of(rows, 0), sum);
}

}  // namespace sdpa
