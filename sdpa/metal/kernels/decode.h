// SPDX-License-Identifier: MIT
#pragma once

// Decoding: few queries and many keys, so there are more SIMD groups than rows to give them.
//
//   split_keys   a SIMD group takes up to 8 rows and one part of the keys, and leaves for each row
//                O / l of that part and its LSE
//   merge        out = sum of exp(LSE_part - LSE) out_part
//
// The rows of a SIMD group are those of all heads that share a key head, heads outside and queries
// inside: K and V are read once for the group. Decoding is bound by that traffic, so rows of
// the 8 that do not exist cost nothing that matters.

#include "sdpa/metal/kernels/forward.h"

namespace sdpa {

/// Eight rows of a group of heads, from `first` on.
METAL_FUNC Rows rows_of_group(constant AttentionParams& p, long batch, long kv_head, long first,
                              Place at) {
  const long heads = p.q_heads / p.kv_heads;
  const long last = smaller(first + kSide, heads * p.q_len) - 1;
  const long mine = smaller(first + at.row, last);
  const bool one_head = first / p.q_len == last / p.q_len;
  Rows rows;
  rows.batch = batch;
  rows.kv_head = kv_head;
  rows.query = one_head ? first % p.q_len : 0;
  rows.last_query = one_head ? last % p.q_len : p.q_len - 1;
  rows.head = kv_head * heads + mine / p.q_len;
  rows.row = mine % p.q_len;
  rows.is_mine = first + at.row <= last;
  return rows;
}

/// Grid (ceil(splits / groups), kv_heads * chunks * row tiles, batch); splits count SIMD groups.
template <typename S>
[[kernel]] void split_keys(
    const device typename S::Element* q [[buffer(0)]],
    const device typename S::Element* k [[buffer(1)]],
    const device typename S::Element* v [[buffer(2)]], const device uchar* mask [[buffer(3)]],
    const device uchar* sinks [[buffer(4)]], device float* partial_out [[buffer(5)]],
    device float* partial_lse [[buffer(6)]], constant AttentionParams& p [[buffer(7)]],
    constant AttentionScalars& r [[buffer(8)]], uint3 group [[threadgroup_position_in_grid]],
    uint simd_group [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const long split = long(group.x) * S::groups() + simd_group;
  if (split >= p.splits) return;
  const Place at = place_of(lane);
  const int chunk = int(group.y % S::chunks());
  const long kv_head = group.y / S::chunks() % p.kv_heads;
  const long tile = group.y / S::chunks() / p.kv_heads;
  const Rows rows = rows_of_group(p, group.z, kv_head, tile * kSide, at);
  const int first = chunk * S::out_v();
  ForwardInputs<S> in;
  in.q = q;
  in.k = k;
  in.v = v;
  in.mask = mask;
  in.classes = mask;

  Walk<S> walk;
  start_walk<S>(walk, p, q, rows, at);
  if (S::has(kSinks) && split == 0) see_sink<S>(walk, p, sinks, rows, at);
  KeyRange range = keys_of<S>(p, rows.query, rows.last_query);
  range.first = larger(range.first, split * p.split_keys);
  range.last = smaller(range.last, (split + 1) * p.split_keys);
  walk_directly<S>(walk, in, p, r, rows, range, first, at);

  walk.softmax.sum = sum_of_row(walk.softmax.sum);
  if (!rows.is_mine) return;
  const float factor =
      softmax_normalizer(walk.softmax) * (S::has(kDropout) ? r.dropout_rescale : 1.0f);
  const long part = ((rows.batch * p.q_heads + rows.head) * p.q_len + rows.row) * p.splits + split;
  store_row(partial_out + part * p.v_dim, walk.out, factor, first, S::out_v(), int(p.v_dim), at);
  if (chunk == 0 && at.column == 0) partial_lse[part] = log_sum_exp(walk.softmax);
}

/// Grid (q_len, q_heads, batch); a SIMD group a row, lanes over columns.
template <typename S>
[[kernel]] void merge(const device float* partial_out [[buffer(0)]],
                      const device float* partial_lse [[buffer(1)]],
                      device typename S::Element* out [[buffer(2)]],
                      device float* lse [[buffer(3)]], constant AttentionParams& p [[buffer(4)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint lane [[thread_index_in_simdgroup]]) {
  const long row = group.x, head = group.y, batch = group.z;
  const long first = ((batch * p.q_heads + head) * p.q_len + row) * p.splits;
  OnlineSoftmax softmax;
  softmax.max = -INFINITY;
  softmax.sum = 0;
  for (long split = 0; split < p.splits; ++split)
    softmax.max = max(softmax.max, partial_lse[first + split] * kLog2OfE);
  const float base = softmax_base(softmax.max);
  for (long split = 0; split < p.splits; ++split)
    softmax.sum += exp2(partial_lse[first + split] * kLog2OfE - base);
  const float normalizer = softmax_normalizer(softmax);
  for (int d = int(lane); d < p.v_dim; d += kFlashLanes) {
    float sum = 0;
    for (long split = 0; split < p.splits; ++split) {
      const float weight = exp2(partial_lse[first + split] * kLog2OfE - base);
      sum += weight * partial_out[(first + split) * p.v_dim + d];
    }
    out[offset(p.out, batch, head, row) + d] = typename S::Element(sum * normalizer);
  }
  if (S::has(kLse) && lane == 0) lse[offset(p.lse, batch, head, row)] = log_sum_exp(softmax);
}

}  // namespace sdpa
