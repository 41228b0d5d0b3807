// SPDX-License-Identifier: MIT
#pragma once

// Dropout as a tensor, for graphs, which have no counter-based generator of their own: one byte a
// pair, 1 where its probability is kept. The words are those of every other kernel (dropout.h).

#include "sdpa/metal/kernels/sight.h"

namespace sdpa {

/// Grid (ceil(kv_len / 128), q_len, q_heads * batch); a lane four neighbouring keys.
template <typename S>
[[kernel]] void keep_pairs(device uchar* kept [[buffer(0)]],
                           constant AttentionParams& p [[buffer(1)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]]) {
  Pair pair;
  pair.batch = group.z / p.q_heads;
  pair.head = group.z % p.q_heads;
  pair.query = group.y;
  pair.key = (long(group.x) * 32 + lane) * 4;
  const uint bits = kept_of_four(p, pair);
  device uchar* row = kept + (long(group.z) * p.q_len + pair.query) * p.kv_len;
  for (long n = 0; n < 4 && pair.key + n < p.kv_len; ++n) row[pair.key + n] = uchar(bits >> n & 1);
}

}  // namespace sdpa
