// SPDX-License-Identifier: MIT
#include "sdpa/cpu/decode_plan.h"

#include <algorithm>
#include <sstream>

#include "sdpa/cpu/lanes.h"

namespace sdpa::cpu {
namespace {

/// Enough tasks to keep many cores busy to the end; fewer where a part would be so short that
/// starting it and merging its result showed.
constexpr std::int64_t kEnoughTasks = 128;
constexpr std::int64_t kMinSplitKeys = 2 * kKeyBlock;

/// Products of more rows cost more than reading the keys: the general kernel's lanes are full
/// enough by then, unless there are so many keys that only splitting them gives every thread work.
/// A tile has 16 rows in any case.
constexpr std::int64_t kFewRows = 8;
constexpr std::int64_t kManyKeys = 1024;

/// Rows [first_row, first_row + rows) of each head, whose keys are not cut.
DecodePlan plan_rows(const Problem& problem, std::int64_t first_row, std::int64_t rows) {
  DecodePlan plan{.first_row = first_row, .rows = rows, .tasks = problem.batch * problem.kv_heads};
  const std::int64_t last_query = (first_row + rows - 1) / problem.group();
  plan.last_key = std::min(problem.last_key(last_query), problem.kv_len);
  plan.first_key = std::min(problem.first_key(first_row / problem.group()), plan.last_key);
  plan.split_keys = (ceil_div(plan.last_key, kKeyBlock) - plan.first_key / kKeyBlock) * kKeyBlock;
  return plan;
}

}  // namespace

bool is_decode(const Problem& problem, KernelShape shape) {
  const std::int64_t rows = problem.q_len * problem.group();
  if (problem.dtype == DType::kFloat64 || rows > shape.block_lanes) return false;
  const bool has_tiles = shape.has_bfloat16_tiles && problem.dtype == DType::kBFloat16;
  return rows <= kFewRows ||
         (rows <= kMaxDecodeRows &&
          ((has_tiles && problem.kv_len >= kMinTileKeys) || problem.kv_len >= kManyKeys));
}

DecodePlan plan_decode(const Problem& problem) {
  DecodePlan plan = plan_rows(problem, 0, problem.q_len * problem.group());
  const std::int64_t heads = problem.batch * problem.kv_heads;
  const std::int64_t blocks = plan.split_keys / kKeyBlock;
  const std::int64_t most = blocks * kKeyBlock / kMinSplitKeys;
  const std::int64_t wanted =
      std::clamp<std::int64_t>(ceil_div(kEnoughTasks, heads), 1, std::max<std::int64_t>(most, 1));
  plan.split_keys = std::max<std::int64_t>(ceil_div(blocks, wanted), 1) * kKeyBlock;
  plan.splits = std::max<std::int64_t>(ceil_div(blocks * kKeyBlock, plan.split_keys), 1);
  plan.tasks = heads * plan.splits;
  return plan;
}

DecodePlan plan_last_rows(const Problem& problem, int block_lanes) {
  const std::int64_t rows = problem.q_len * problem.group(), left = rows % block_lanes;
  if (rows < block_lanes || left == 0 || left > kFewRows) return {};
  return plan_rows(problem, rows - left, left);
}

std::string to_string(const DecodePlan& plan, std::string_view instruction_set) {
  std::ostringstream text;
  text << instruction_set << ": decode, " << plan.rows << (plan.rows == 1 ? " row" : " rows");
  if (plan.splits > 1) text << ", keys in " << plan.splits << " parts of " << plan.split_keys;
  text << ", " << plan.tasks << (plan.tasks == 1 ? " task" : " tasks");
  return text.str();
}

}  // namespace sdpa::cpu
