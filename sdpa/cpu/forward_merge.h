// SPDX-License-Identifier: MIT
#pragma once

// Where a block's keys are split over tasks: what each part leaves behind, and how the parts become
// one block again. Lanes stay lanes, so that nothing is transposed on the way.

#include "sdpa/cpu/forward_step.h"
#include "sdpa/cpu/scratch.h"

namespace sdpa::cpu {

/// Parts one after the other, each [row_max][row_sum, one or two][out] of a block of lanes.
template <class S, typename Element>
struct ForwardParts {
  static constexpr int kWidth = S::kLanes * S::kColumns;
  using Block = LaneBlock<S, Element>;
  static constexpr int kSums = Block::kSums;

  float* data = nullptr;
  std::int64_t v_dim = 0;

  static std::int64_t floats(std::int64_t v_dim) { return (1 + kSums + v_dim) * kWidth; }

  float* row_max(std::int64_t part) const { return data + part * floats(v_dim); }

  float* row_sum(std::int64_t part) const { return row_max(part) + kWidth; }

  float* out(std::int64_t part) const { return row_sum(part) + kSums * kWidth; }

  void save(const Block& block, std::int64_t part) const {
    constexpr std::size_t kBytes = kWidth * sizeof(float);
    __builtin_memcpy(row_max(part), block.row_max, kBytes);
    __builtin_memcpy(row_sum(part), block.row_sum, sizeof block.row_sum);
    if (block.is_started)
      __builtin_memcpy(out(part), block.out, static_cast<std::size_t>(v_dim) * kBytes);
    else
      __builtin_memset(out(part), 0, static_cast<std::size_t>(v_dim) * kBytes);
  }

  /// In the order of their keys, by the maximum m of each:
  ///
  ///   m = max m_i;  w_i = 2^(m_i - m);  row_sum = sum w_i row_sum_i;  O = sum w_i O_i
  void merge(std::int64_t first, std::int64_t count, Block& block) const {
    for (int lane = 0; lane < block.lanes.count; lane += S::kLanes) {
      auto top = S::broadcast(kMinusInfinity);
      for (std::int64_t i = first; i < first + count; ++i)
        top = S::max(S::load(row_max(i) + lane), top);
      const auto base = S::keep(S::greater(top, S::broadcast(kMinusInfinity)), top);
      typename S::Vec sum[kSums];
      for (auto& each : sum) each = S::zero();
      for (std::int64_t d = 0; d < v_dim; ++d) S::store(block.out + d * kWidth + lane, S::zero());
      for (std::int64_t i = first; i < first + count; ++i) {
        const auto weight = exp2<S>(S::sub(S::load(row_max(i) + lane), base));
        for (int n = 0; n < kSums; ++n)
          sum[n] = S::multiply_add(weight, S::load(row_sum(i) + n * kWidth + lane), sum[n]);
        for (std::int64_t d = 0; d < v_dim; ++d) {
          float* to = block.out + d * kWidth + lane;
          S::store(to, S::multiply_add(weight, S::load(out(i) + d * kWidth + lane), S::load(to)));
        }
      }
      S::store(block.row_max + lane, top);
      for (int n = 0; n < kSums; ++n) S::store(block.row_sum[n] + lane, sum[n]);
    }
    block.is_started = true;
  }
};

}  // namespace sdpa::cpu
