// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "sdpa/cpu/backward_plan.h"
#include "sdpa/problem.h"

namespace sdpa::cpu {

constexpr int kMaxStagedRows = kUnitRows > kKeyStep ? kUnitRows : kKeyStep;

/// Rows of a tensor by their addresses.
struct TensorRows {
  DType dtype;
  std::int64_t step;  ///< stride between columns, in elements
  int rows, columns;
  char* row[kMaxStagedRows];
};

/// Rows [first, first + count) of one head.
TensorRows head_rows(const TensorView& view, std::int64_t batch, std::int64_t head,
                     std::int64_t first, std::int64_t count);

/// The rows of a query-like tensor for rows [first, first + count) of a group.
TensorRows group_rows(const TensorView& view, const Problem& problem, std::int64_t batch,
                      std::int64_t kv_head, std::int64_t first, std::int64_t count);

/// Where the pieces of a worker's scratch memory begin, in floats; `size` of all. Each piece is
/// a whole number of cache lines.
struct BackwardLayout {
  std::int64_t qk_stride = 0, v_stride = 0;  ///< of staged and accumulated rows
  std::int64_t query = 0, query_t = 0, grad_out = 0, grad_out_t = 0, out = 0, grad_query = 0;
  std::int64_t key = 0, value = 0;
  std::int64_t p = 0, ds = 0, slope = 0, lse = 0, lse_rest = 0, grad_lse = 0, delta = 0;
  std::int64_t own = 0;  ///< the kernels' own, BackwardKernels::own_floats
  std::int64_t size = 0;
};

/// What all tasks of a backward pass share. Plain data: kernels are compiled once an instruction
/// set, and share no inline functions of the standard library with other translation units.
struct BackwardJob {
  const Problem* problem = nullptr;
  const BackwardTensors* tensors = nullptr;
  BackwardLayout layout;
  const BackwardPart* parts = nullptr;
  std::int64_t part_count = 0;
  std::int64_t unit_rows = 0;
  std::int64_t query_slots = 1;
  std::int64_t first_dotted_row = 0;  ///< of a key head; see backward_dots.h
  const float* sinks = nullptr;       ///< [q_heads], times log2(e)
  float* sink_terms = nullptr;  ///< [batch][kv_heads][rows]: a row's part of its sink's gradient
};

/// One task: a part of a (batch, key head), and where its sums go. `key_sums` holds the part's rows
/// of dK, then those of dV.
struct BackwardTask {
  const BackwardJob* job;
  const BackwardPart* part;
  std::int64_t batch, kv_head;
  float* key_sums;
  float* query_sums;  ///< rows of dQ; null: they are written to their tensor
  float* scratch;
  std::int64_t next_head =
      -1;  ///< batch * kv_heads + kv_head of the task that follows; -1: unknown
};

/// The share of the mask's gradient that one task owns: that of one block of keys, or of all where
/// the mask is the same for all keys. Batches and heads that share a mask are summed in order.
struct BackwardMaskTask {
  const BackwardJob* job;
  std::int64_t first_batch, last_batch;
  std::int64_t first_head, last_head;  ///< key heads
  std::int64_t first_block, last_block;
  float* scratch;
};

/// The private gradients of a (batch, key head), all parts done.
struct BackwardMerge {
  const BackwardJob* job;
  std::int64_t batch, kv_head;
  const float* key_sums;    ///< of the first part
  const float* query_sums;  ///< of the first slot
  float* scratch;
};

/// The backward pass of one instruction set.
struct BackwardKernels {
  void (*run_part)(const BackwardTask&);
  void (*merge_keys)(const BackwardMerge&, std::int64_t key_block);
  void (*merge_queries)(const BackwardMerge&, std::int64_t unit);
  void (*add_mask_gradient)(const BackwardMaskTask&);

  /// What the kernels want of a worker's scratch memory for units of so many rows.
  std::int64_t (*own_floats)(const Problem&, std::int64_t unit_rows);
};

}  // namespace sdpa::cpu
