// SPDX-License-Identifier: MIT
#pragma once

// Which query of which head each lane of a block stands for, and which keys it may see.
//
// The rows of one key/value head are all queries of all query heads that share it, counted as
// row = query * group + (head within the group): heads of a group lie side by side, so that a block
// spans few query positions and keys are read once for the whole group.

#include <cstdint>

#include "sdpa/problem.h"

namespace sdpa::cpu {

/// The most lanes a block has on any instruction set.
constexpr int kMaxBlockLanes = 48;

/// Keys are visited in blocks of this many, at multiples of it.
constexpr int kKeyBlock = 128;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Query and head of one row after the other. Small problems would notice a division a row.
struct RowCursor {
  std::int64_t group, query, head;  ///< head within the group

  RowCursor(std::int64_t group_size, std::int64_t row)
      : group(group_size), query(row / group_size), head(row % group_size) {}

  void advance() {
    if (++head < group) return;
    head = 0;
    ++query;
  }
};

struct Lanes {
  int count = 0;  ///< lanes in use; the rest stand for nothing
  std::int64_t batch = 0;
  std::int64_t kv_head = 0;
  std::int64_t query[kMaxBlockLanes];
  std::int64_t head[kMaxBlockLanes];   ///< query head within the batch
  std::int64_t first[kMaxBlockLanes];  ///< keys [first, last) are visible by position
  std::int64_t last[kMaxBlockLanes];
  std::int64_t min_first, max_first, min_last, max_last;  ///< over the lanes in use
};

/// The lanes for rows [row, row + count) of one key/value head.
Lanes make_lanes(const Problem& problem, std::int64_t batch, std::int64_t kv_head, std::int64_t row,
                 int count);

/// The address of element (lane's head, lane's query, 0) of a rank-4 view.
template <typename Data>
__attribute__((always_inline)) inline Data* row_of(const TensorView& view, const Lanes& lanes,
                                                   int lane) {
  return static_cast<Data*>(view.data) + lanes.batch * view.strides[0] +
         lanes.head[lane] * view.strides[1] + lanes.query[lane] * view.strides[2];
}

/// The same in bytes, for any element type; nullptr for an absent view.
const char* row_address(const TensorView& view, const Lanes& lanes, int lane);

/// The sink of a query head times log2(e), the unit of scores.
float sink_logit(const TensorView& sinks, std::int64_t head);

}  // namespace sdpa::cpu
