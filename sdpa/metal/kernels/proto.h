// SPDX-License-Identifier: MIT
#pragma once

// The naive kernel, to read and to compare with: one thread a query, no tiles, no SIMD groups.
//
//   first the maximum and the sum of the row's scores; then, 32 columns of V at a time, every
//   probability once more times its row of V

#include "sdpa/metal/kernels/sight.h"

namespace sdpa {

enum { kProtoColumns = 32 };

/// The score of one pair in base 2.
template <typename S>
METAL_FUNC float score_of(const device typename S::Element* query,
                          const device typename S::Element* key, const device uchar* mask,
                          constant AttentionParams& p, constant AttentionScalars& r, Pair pair) {
  const float score = masked<S>(p, mask, pair, 0.0f);
  if (score == -INFINITY) return score;
  float product = 0;
  for (int d = 0; d < p.qk_dim; ++d) product += float(query[d]) * float(key[d]);
  return score + scaled<S>(r, product);
}

template <typename S>
METAL_FUNC bool is_kept(constant AttentionParams& p, Pair pair) {
  return !S::has(kDropout) || (kept_of_four(p, pair) >> (pair.key & 3) & 1) != 0;
}

/// Grid (ceil(q_len / 32), q_heads, batch).
template <typename S>
[[kernel]] void proto(const device typename S::Element* q [[buffer(0)]],
                      const device typename S::Element* k [[buffer(1)]],
                      const device typename S::Element* v [[buffer(2)]],
                      const device uchar* mask [[buffer(3)]],
                      const device uchar* sinks [[buffer(4)]],
                      device typename S::Element* out [[buffer(5)]],
                      device float* lse [[buffer(6)]], constant AttentionParams& p [[buffer(7)]],
                      constant AttentionScalars& r [[buffer(8)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint lane [[thread_index_in_simdgroup]]) {
  Pair pair;
  pair.batch = group.z;
  pair.head = group.y;
  pair.query = long(group.x) * kFlashLanes + lane;
  if (pair.query >= p.q_len) return;
  const long kv_head = pair.head / (p.q_heads / p.kv_heads);
  const device typename S::Element* query = q + offset(p.query, pair.batch, pair.head, pair.query);
  const device typename S::Element* keys = k + offset(p.key, pair.batch, kv_head, 0);
  const device typename S::Element* values = v + offset(p.value, pair.batch, kv_head, 0);

  OnlineSoftmax softmax;
  softmax.max = S::has(kSinks) ? sink_of(p, sinks, pair.head) : -INFINITY;
  softmax.sum = S::has(kSinks) ? 1 : 0;
  for (pair.key = 0; pair.key < p.kv_len; ++pair.key) {
    const float score = score_of<S>(query, keys + pair.key * p.key.row, mask, p, r, pair);
    const float highest = max(softmax.max, score);
    softmax.sum =
        softmax.sum * softmax_factor(softmax, highest) + exp2(score - softmax_base(highest));
    softmax.max = highest;
  }
  const float factor = softmax_normalizer(softmax) * (S::has(kDropout) ? r.dropout_rescale : 1.0f);

  device typename S::Element* row = out + offset(p.out, pair.batch, pair.head, pair.query);
  for (int first = 0; first < p.v_dim; first += kProtoColumns) {
    const int columns = int(smaller(p.v_dim - first, kProtoColumns));
    float sums[kProtoColumns];
    for (int d = 0; d < columns; ++d) sums[d] = 0;
    for (pair.key = 0; pair.key < p.kv_len; ++pair.key) {
      const float score = score_of<S>(query, keys + pair.key * p.key.row, mask, p, r, pair);
      if (score == -INFINITY || !is_kept<S>(p, pair)) continue;
      const float probability = exp2(score - softmax_base(softmax.max));
      for (int d = 0; d < columns; ++d)
        sums[d] += probability * float(values[pair.key * p.value.row + first + d]);
    }
    for (int d = 0; d < columns; ++d) row[first + d] = typename S::Element(sums[d] * factor);
  }
  if (S::has(kLse)) lse[offset(p.lse, pair.batch, pair.head, pair.query)] = log_sum_exp(softmax);
}

}  // namespace sdpa
