// SPDX-License-Identifier: MIT
#pragma once

// The softmax of a row whose scores come block by block, in base 2. This file compiles as C++, MSL
// and CUDA alike; the includer provides exp2, log2 and INFINITY (C++: <cmath> first).
//
// A row that has seen nothing has max = -infinity. Its result is defined as zero output and a
// log-sum-exp of -infinity; no step subtracts one infinity from another.

namespace sdpa {

struct OnlineSoftmax {
  float max;  ///< of the scores so far, in base 2
  float sum;  ///< of exp2(score - max)
};

/// What is subtracted from a score before exp2: the maximum, and 0 while there is none.
inline float softmax_base(float max) { return max == -INFINITY ? 0.0f : max; }

/// The factor for all that was summed up before the maximum rose to `max`.
inline float softmax_factor(OnlineSoftmax state, float max) {
  return exp2(state.max - softmax_base(max));
}

/// One over the sum; 0 for a row that has seen nothing.
inline float softmax_normalizer(OnlineSoftmax state) {
  return state.max == -INFINITY ? 0.0f : 1 / state.sum;
}

/// The natural log-sum-exp.
inline float log_sum_exp(OnlineSoftmax state) {
  const float log_of_2 = 0.69314718055994530942f;
  return state.max == -INFINITY ? -INFINITY : (state.max + log2(state.sum)) * log_of_2;
}

}  // namespace sdpa
