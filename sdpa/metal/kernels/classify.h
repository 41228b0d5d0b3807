// SPDX-License-Identifier: MIT
#pragma once

// The mask's pre-pass: for each tile of 32 queries and 32 keys of the mask, one byte that says
// whether it hides all (skip), something (partial), or nothing and adds nothing (full). The mask is
// read once here, so that the kernels that walk the keys, several times in a backward pass, leave
// whole tiles out and read the mask only where it matters.

#include "sdpa/metal/kernels/sight.h"

namespace sdpa {

/// Grid (tiles of keys, tiles of queries, mask heads * mask batches); a SIMD group a tile, a lane a
/// key.
template <typename S>
[[kernel]] void classify(const device uchar* mask [[buffer(0)]],
                         device uchar* classes [[buffer(1)]],
                         constant AttentionParams& p [[buffer(2)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint lane [[thread_index_in_simdgroup]]) {
  const long head = group.z % p.mask_heads, batch = group.z / p.mask_heads;
  const long key = long(group.x) * kClassTile + lane;
  const long first = long(group.y) * kClassTile;
  const long last = smaller(first + kClassTile, p.mask_rows);
  bool any_seen = false, all_plain = true;
  for (long row = first; row < last && key < p.mask_columns; ++row) {
    const float bias = mask_bias<S>(mask, offset(p.mask, batch, head, row) + key * p.mask.column);
    any_seen = any_seen || bias != -INFINITY;
    all_plain = all_plain && bias == 0;
  }
  any_seen = simd_any(any_seen);
  all_plain = simd_all(all_plain);
  if (lane == 0)
    classes[batch * p.class_batch + head * p.class_head + long(group.y) * p.class_columns +
            group.x] = uchar(!any_seen   ? kSkip
                             : all_plain ? kFull
                                         : kPartial);
}

}  // namespace sdpa
