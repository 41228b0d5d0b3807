// SPDX-License-Identifier: MIT
#pragma once

// What backward.cpp hands out: parts of a pass, and blocks of a mask's gradient; in floats or in
// pairs of bfloat16.
#include "sdpa/cpu/backward_kernel.h"

namespace sdpa::cpu {

/// Pairs round P and dS to bfloat16. Where few keys share the softmax and many rows add up to each,
/// that would show in dV and dK.
SDPA_INLINE bool may_round_weights(const Problem& problem) {
  return problem.dtype == DType::kBFloat16 && problem.kv_len >= kKeyBlock;
}

template <class S>
void run_part(const BackwardTask& task) {
  if constexpr (S::kHasBFloat16Dot)
    if (may_round_weights(*task.job->problem)) return BackwardKernel<S, BFloat16Pair>(task).run();
  BackwardKernel<S, float>(task).run();
}

/// In floats: there is no product to gain from pairs.
template <class S>
void add_mask_gradient(const BackwardMaskTask& task) {
  for (std::int64_t batch = task.first_batch; batch < task.last_batch; ++batch)
    for (std::int64_t head = task.first_head; head < task.last_head; ++head)
      BackwardKernel<S, float>({task.job, nullptr, batch, head, nullptr, nullptr, task.scratch})
          .run_mask(task.first_block, task.last_block);
}

}  // namespace sdpa::cpu
