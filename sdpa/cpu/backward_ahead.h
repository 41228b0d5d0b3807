// SPDX-License-Identifier: MIT
#pragma once

// Rows that the backward pass will need soon, asked for into the second level of cache, a few with
// every register tile: see ahead.h for why not all at once. They lie at equal distances, so a span
// is a few words whatever its length.
//
// One Zen 4 core, fp32, share of the peak, with keys read in place: B32 H12 L128 D64 from 70 to
// 76 %, B256 H4 L49 D32 from 38 to 46 %.
#include <cstdint>

#include "sdpa/cpu/backward_job.h"
#include "sdpa/cpu/simd.h"

namespace sdpa::cpu {

/// `rows` pieces of `bytes` each, `stride` bytes apart.
struct RowSpan {
  const char* at = nullptr;
  std::int64_t stride = 0;
  std::int64_t rows = 0, bytes = 0;
  bool is_written = false;
};

class BackwardAhead {
 public:
  SDPA_INLINE explicit BackwardAhead(const BackwardTask& task)
      : task_(task), s_(*task.job->problem), t_(*task.job->tensors) {}

  /// Forgets what was not asked for yet.
  SDPA_INLINE void clear() { count_ = next_ = row_ = rows_ = 0; }

  SDPA_INLINE void add_keys(std::int64_t first, std::int64_t keys) {
    add_rows(t_.key, task_.batch, task_.kv_head, first, keys);
    add_rows(t_.value, task_.batch, task_.kv_head, first, keys);
  }

  /// Rows of our own that will be added to.
  SDPA_INLINE void add_floats(const float* sums, std::int64_t stride, std::int64_t rows) {
    const std::int64_t bytes = stride * static_cast<std::int64_t>(sizeof(float));
    add({reinterpret_cast<const char*>(sums), bytes, rows, bytes, true});
  }

  /// What ends with a unit and what the next one begins with, which may be another head's.
  SDPA_INLINE void add_next_unit(std::int64_t row, std::int64_t rows) {
    const std::int64_t next = row + task_.job->unit_rows;
    if (task_.query_sums == nullptr)
      add_group(t_.grad_query, task_.batch, task_.kv_head, row, rows, true);
    if (next < task_.part->last_unit * task_.job->unit_rows)
      return add_queries(task_.batch, task_.kv_head, next);
    if (task_.next_head < 0) return;
    const std::int64_t batch = task_.next_head / s_.kv_heads;
    const std::int64_t head = task_.next_head % s_.kv_heads;
    const std::int64_t keys = s_.kv_len < kKeyBlock ? s_.kv_len : kKeyBlock;
    add_rows(t_.grad_key, task_.batch, task_.kv_head, 0, keys, true);
    add_rows(t_.grad_value, task_.batch, task_.kv_head, 0, keys, true);
    add_queries(batch, head, 0);
    add_rows(t_.key, batch, head, 0, keys);
    add_rows(t_.value, batch, head, 0, keys);
  }

  /// So many calls of `ask` will follow.
  SDPA_INLINE void spread(int calls) { at_once_ = (rows_ + calls - 1) / calls; }

  SDPA_INLINE void ask() {
    for (std::int64_t n = 0; n < at_once_ && next_ < count_; ++n) {
      const RowSpan& span = spans_[next_];
      const char* row = span.at + row_ * span.stride;
      span.is_written ? fetch<1>(row, span.bytes) : fetch<0>(row, span.bytes);
      if (++row_ < span.rows) continue;
      row_ = 0;
      ++next_;
    }
  }

 private:
  static constexpr int kMostSpans = 32;

  SDPA_INLINE void add(const RowSpan& span) {
    if (count_ == kMostSpans || span.rows <= 0) return;
    spans_[count_++] = span;
    rows_ += span.rows;
  }

  /// Rows [first, first + rows) of one head; nothing where their elements are not neighbours.
  SDPA_INLINE void add_rows(const TensorView& view, std::int64_t batch, std::int64_t head,
                            std::int64_t first, std::int64_t rows, bool is_written = false) {
    if (!view.is_present() || view.strides[3] != 1) return;
    const std::int64_t size = size_bytes(view.dtype);
    add({static_cast<const char*>(view.data) +
             size * (batch * view.strides[0] + head * view.strides[1] + first * view.strides[2]),
         size * view.strides[2], rows, size * view.shape[3], is_written});
  }

  /// The rows of a unit that begins at `row`.
  SDPA_INLINE void add_queries(std::int64_t batch, std::int64_t kv_head, std::int64_t row) {
    add_group(t_.query, batch, kv_head, row, task_.job->unit_rows, false);
    add_group(t_.grad_out, batch, kv_head, row, task_.job->unit_rows, false);
    add_group(t_.out, batch, kv_head, row, task_.job->unit_rows, false);
  }

  SDPA_INLINE void add_group(const TensorView& view, std::int64_t batch, std::int64_t kv_head,
                             std::int64_t row, std::int64_t rows, bool is_written) {
    const std::int64_t group = s_.group(), first = row / group;
    const std::int64_t left = s_.q_len - first, count = ceil_div(rows, group);
    for (std::int64_t member = 0; member < group; ++member)
      add_rows(view, batch, kv_head * group + member, first, count < left ? count : left,
               is_written);
  }

  template <int Write>
  static SDPA_INLINE void fetch(const char* row, std::int64_t bytes) {
    constexpr int kSecondLevel = 2, kLine = 64;
    for (std::int64_t byte = 0; byte < bytes; byte += kLine)
      __builtin_prefetch(row + byte, Write, kSecondLevel);
  }

  const BackwardTask& task_;
  const Problem& s_;
  const BackwardTensors& t_;
  RowSpan spans_[kMostSpans];
  int count_ = 0, next_ = 0;
  std::int64_t row_ = 0, rows_ = 0, at_once_ = 0;
};

}  // namespace sdpa::cpu
