// SPDX-License-Identifier: MIT
#pragma once

// Terms of single rows that every kernel of the backward pass has alike.
#include "sdpa/cpu/backward_job.h"
#include "sdpa/cpu/score.h"

namespace sdpa::cpu {

/// Or NaN. A probability that is not 0 is at least 2^-126.
template <class S>
SDPA_INLINE typename S::Mask is_positive(typename S::Vec p) {
  return S::not_less(p, S::broadcast(0x1p-126f));
}

/// Of the parts that share a unit, the one with the first key that it sees speaks for its rows.
SDPA_INLINE bool owns_rows(const BackwardPart& part, const BlockRange& seen) {
  if (seen.first == seen.last) return part.query_slot == 0;
  return part.first_block <= seen.first && seen.first < part.last_block;
}

/// dsink = -P_sink (D - dLSE) of the lanes' rows, the first of which is `row` of its key head.
template <class S>
void write_sink_terms(const BackwardTask& task, const Lanes& lanes, std::int64_t row,
                      const float* lse, const float* delta) {
  const Problem& s = *task.job->problem;
  float* to =
      task.job->sink_terms + (task.batch * s.kv_heads + task.kv_head) * s.q_len * s.group() + row;
  for (int lane = 0; lane < lanes.count; ++lane) {
    float p[S::kLanes];
    S::store(p, exp2<S>(S::broadcast(task.job->sinks[lanes.head[lane]] - lse[lane])));
    to[lane] = p[0] == 0 ? 0 : -p[0] * delta[lane];
  }
}

/// What the sinks take of the softmax of each lane from `first` on; 0 without sinks.
template <class S>
typename S::Vec sink_probabilities(const Problem& s, const TensorView& sinks, const Lanes& lanes,
                                   int first, const float* lse) {
  if (!s.has_sinks) return S::zero();
  float logit[S::kLanes];
  for (int i = 0; i < S::kLanes; ++i)
    logit[i] = first + i < lanes.count ? sink_logit(sinks, lanes.head[first + i]) : 0;
  return exp2<S>(S::sub(S::load(logit), S::load(lse + first)));
}

}  // namespace sdpa::cpu
