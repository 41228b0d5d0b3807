// SPDX-License-Identifier: MIT
#pragma once

// dS of a slab and one step of keys, added to the gradient of the mask. Lanes are rows, so it goes
// through a transposition.
#include "sdpa/cpu/backward_job.h"
#include "sdpa/cpu/simd.h"

namespace sdpa::cpu {

/// ds[key][lane], `lanes` of them side by side.
struct SlabScores {
  const float* ds;
  std::int64_t lanes;
  int rows, keys;
};

template <class S>
void add_to_mask_row(float* to, std::int64_t step, int keys, typename S::Vec ds) {
  if (step == 1) return S::store_part(to, S::add(S::load_part(to, keys), ds), keys);
  float lane[S::kLanes];
  S::store(lane, ds);
  for (int key = 0; key < keys; ++key) to[key * step] += lane[key];
}

/// To keys from `first_key` on of `mask`, from its row `first_row` on. Rows of the mask may be one
/// row of memory: they are added one after the other.
template <class S>
void add_to_mask(const SlabScores& from, const TensorRows& mask, int first_row,
                 std::int64_t first_key) {
  for (int lane = 0; lane < from.rows; lane += S::kLanes)
    for (int key = 0; key < from.keys; key += S::kLanes) {
      const int keys = from.keys - key < S::kLanes ? from.keys - key : S::kLanes;
      typename S::Vec block[S::kLanes];
      unroll<S::kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
        block[i] = i < keys ? S::load(from.ds + (key + i) * from.lanes + lane) : S::zero();
      });
      S::transpose(block);
      unroll<S::kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
        if (lane + i < from.rows)
          add_to_mask_row<S>(reinterpret_cast<float*>(mask.row[first_row + lane + i]) +
                                 (first_key + key) * mask.step,
                             mask.step, keys, block[i]);
      });
    }
}

}  // namespace sdpa::cpu
