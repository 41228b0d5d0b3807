// SPDX-License-Identifier: MIT
#pragma once

// Where a part gathers the gradients of its keys: rows of dK, then those of dV.
#include "sdpa/cpu/backward_job.h"
#include "sdpa/cpu/simd.h"

namespace sdpa::cpu {

template <class S>
class KeySums {
 public:
  explicit KeySums(const BackwardTask& task) : task_(task), m_(task.job->layout) {}

  /// The sums for keys from `key` on.
  float* grad_key(std::int64_t key) const { return task_.key_sums + row(key) * m_.qk_stride; }

  float* grad_value(std::int64_t key) const {
    const std::int64_t rows = (task_.part->last_block - task_.part->first_block) * kKeyBlock;
    return task_.key_sums + rows * m_.qk_stride + row(key) * m_.v_stride;
  }

  /// Nothing is zeroed yet.
  void begin() { zeroed_ = task_.part->first_block; }

  /// Blocks are zeroed just before their first use: they are about to be in cache anyway.
  void zero_until(std::int64_t last_block) {
    for (; zeroed_ < last_block; ++zeroed_) {
      const std::int64_t key = zeroed_ * kKeyBlock, left = task_.job->problem->kv_len - key;
      const std::int64_t keys = left < kKeyBlock ? left : kKeyBlock;
      clear(grad_key(key), keys * m_.qk_stride);
      clear(grad_value(key), keys * m_.v_stride);
    }
  }

 private:
  std::int64_t row(std::int64_t key) const { return key - task_.part->first_block * kKeyBlock; }

  static void clear(float* sums, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += S::kLanes) S::store(sums + i, S::zero());
  }

  const BackwardTask& task_;
  const BackwardLayout& m_;
  std::int64_t zeroed_ = 0;  ///< blocks before this one have their sums zeroed
};

}  // namespace sdpa::cpu
