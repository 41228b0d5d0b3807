// SPDX-License-Identifier: MIT
#pragma once

// Private sums of the parts of a (batch, key head), added in the order of the parts and written.
#include "sdpa/cpu/backward_job.h"
#include "sdpa/cpu/backward_stage.h"

namespace sdpa::cpu {

template <class S>
void add_floats(const float* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; i += S::kLanes)
    S::store(to + i, S::add(S::load(to + i), S::load(from + i)));
}

/// One of the two gradients of keys: where its rows are in the parts' sums, and where they go.
struct KeyGradient {
  const TensorView* view;
  std::int64_t stride;   ///< of its rows
  std::int64_t skipped;  ///< floats a row of the gradient that is stored before it in each part
  float factor;
};

/// The sums of `part` for keys [first, ...); null where it does not see them.
template <class S>
const float* part_sums(const BackwardMerge& merge, const BackwardPart& part,
                       const KeyGradient& gradient, std::int64_t first) {
  if (first < part.first_block * kKeyBlock || first >= part.last_block * kKeyBlock) return nullptr;
  const BackwardLayout& m = merge.job->layout;
  const std::int64_t rows = (part.last_block - part.first_block) * kKeyBlock;
  return merge.key_sums + part.key_offset * (m.qk_stride + m.v_stride) + rows * gradient.skipped +
         (first - part.first_block * kKeyBlock) * gradient.stride;
}

/// Writes keys [first, first + rows) of one gradient. What one part alone has seen is not copied.
template <class S>
void merge_key_rows(const BackwardMerge& merge, const KeyGradient& gradient, std::int64_t first,
                    std::int64_t rows) {
  const BackwardJob& job = *merge.job;
  const std::int64_t count = rows * gradient.stride;
  float* sums = merge.scratch + job.layout.key;
  const float* only = nullptr;
  int seen = 0;
  for (std::int64_t n = 0; n < job.part_count; ++n) {
    const float* part = part_sums<S>(merge, job.parts[n], gradient, first);
    if (part == nullptr) continue;
    if (++seen == 2) __builtin_memcpy(sums, only, static_cast<std::size_t>(count) * sizeof(float));
    if (seen == 1)
      only = part;
    else
      add_floats<S>(part, count, sums);
  }
  if (seen == 0) __builtin_memset(sums, 0, static_cast<std::size_t>(count) * sizeof(float));
  write_rows<S>({seen == 1 ? const_cast<float*>(only) : sums, gradient.stride}, gradient.factor,
                head_rows(*gradient.view, merge.batch, merge.kv_head, first, rows));
}

/// dK and dV of one block of keys.
template <class S>
void merge_keys(const BackwardMerge& merge, std::int64_t block) {
  const Problem& s = *merge.job->problem;
  const BackwardTensors& t = *merge.job->tensors;
  const BackwardLayout& m = merge.job->layout;
  const std::int64_t end =
      block * kKeyBlock + kKeyBlock < s.kv_len ? block * kKeyBlock + kKeyBlock : s.kv_len;
  for (std::int64_t first = block * kKeyBlock; first < end; first += kKeyStep) {
    const std::int64_t rows = end - first < kKeyStep ? end - first : kKeyStep;
    if (t.grad_key.is_present())
      merge_key_rows<S>(merge, {&t.grad_key, m.qk_stride, 0, static_cast<float>(s.scale)}, first,
                        rows);
    if (t.grad_value.is_present())
      merge_key_rows<S>(
          merge, {&t.grad_value, m.v_stride, m.qk_stride, static_cast<float>(s.dropout.rescale())},
          first, rows);
  }
}

/// dQ of one unit: the sums of the key parts.
template <class S>
void merge_queries(const BackwardMerge& merge, std::int64_t unit) {
  const BackwardJob& job = *merge.job;
  const Problem& s = *job.problem;
  const std::int64_t all_rows = s.q_len * s.group(), first = unit * job.unit_rows;
  const std::int64_t rows = all_rows - first < job.unit_rows ? all_rows - first : job.unit_rows;
  const std::int64_t stride = job.layout.qk_stride;
  const float* from = merge.query_sums + first * stride;
  float* sums = merge.scratch + job.layout.grad_query;
  __builtin_memcpy(sums, from, static_cast<std::size_t>(rows * stride) * sizeof(float));
  for (std::int64_t slot = 1; slot < job.query_slots; ++slot)
    add_floats<S>(from + slot * all_rows * stride, rows * stride, sums);
  write_rows<S>({sums, stride}, static_cast<float>(s.scale),
                group_rows(job.tensors->grad_query, s, merge.batch, merge.kv_head, first, rows));
}

}  // namespace sdpa::cpu
