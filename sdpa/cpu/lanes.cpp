// SPDX-License-Identifier: MIT
#include "sdpa/cpu/lanes.h"

#include <algorithm>
#include <numbers>

#include "sdpa/element.h"

namespace sdpa::cpu {

Lanes make_lanes(const Problem& problem, std::int64_t batch, std::int64_t kv_head, std::int64_t row,
                 int count) {
  Lanes lanes;
  lanes.count = count;
  lanes.batch = batch;
  lanes.kv_head = kv_head;
  lanes.min_first = lanes.min_last = problem.kv_len;
  lanes.max_first = lanes.max_last = 0;
  const std::int64_t group = problem.group();
  RowCursor at(group, row);  // divided once: short heads have no time
  std::int64_t first = 0, last = 0;
  for (int lane = 0; lane < count; ++lane, at.advance()) {
    if (lane == 0 || at.head == 0) {
      last = std::min(problem.last_key(at.query), problem.kv_len);
      first = std::min(problem.first_key(at.query), last);
    }
    lanes.query[lane] = at.query;
    lanes.head[lane] = kv_head * group + at.head;
    lanes.first[lane] = first;
    lanes.last[lane] = last;
    lanes.min_first = std::min(lanes.min_first, first);
    lanes.max_first = std::max(lanes.max_first, first);
    lanes.min_last = std::min(lanes.min_last, last);
    lanes.max_last = std::max(lanes.max_last, last);
  }
  return lanes;
}

const char* row_address(const TensorView& view, const Lanes& lanes, int lane) {
  if (!view.is_present()) return nullptr;
  const std::int64_t element = lanes.batch * view.strides[0] + lanes.head[lane] * view.strides[1] +
                               lanes.query[lane] * view.strides[2];
  return static_cast<const char*>(view.data) + element * size_bytes(view.dtype);
}

float sink_logit(const TensorView& sinks, std::int64_t head) {
  return static_cast<float>(read(sinks, 0, head, 0, 0) * std::numbers::log2e);
}

}  // namespace sdpa::cpu
