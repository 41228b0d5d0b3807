// SPDX-License-Identifier: MIT
#include "sdpa/cpu/plan.h"

#include <algorithm>
#include <sstream>

#include "sdpa/cpu/lanes.h"

namespace sdpa::cpu {
namespace {

/// Staging a block of keys costs about as much as a third of one block of queries' work on it does
/// in loads and stores; four blocks make that small. Fewer where that would leave fewer than 32
/// tasks.
constexpr int kMaxBlocksPerTask = 4;
constexpr std::int64_t kEnoughTasks = 32;

/// With few chunks their keys are split, into parts that are long beside what a part costs more:
/// its queries transposed once more and its output merged, about five keys at 128 floats a key.
constexpr std::int64_t kMinSplitKeys = 512;

/// A quarter of a second-level cache of 1 MiB: this head's rows and the next one's leave room.
constexpr std::int64_t kShortHead = 256 * 1024;

std::int64_t bytes_of_head(const Problem& problem) {
  const std::int64_t columns = problem.qk_dim + problem.v_dim;
  return (problem.q_len * problem.group() + problem.kv_len) * columns * size_bytes(problem.dtype);
}

/// Cuts the keys of `heads * blocks` tasks so that there are about kEnoughTasks. The last rows are
/// lanes then, too: as decode they would be one long task a head.
void split_keys(std::int64_t heads, ForwardPlan& plan) {
  const std::int64_t all_rows = plan.rows + plan.last_rows.rows;
  const std::int64_t chunks = heads * ceil_div(all_rows, plan.block_lanes);
  const std::int64_t blocks = ceil_div(plan.last_key, kKeyBlock) - plan.first_key / kKeyBlock;
  const std::int64_t wanted = std::min(kEnoughTasks / std::max<std::int64_t>(chunks, 1),
                                       blocks * kKeyBlock / kMinSplitKeys);
  if (wanted < 2) return;
  plan.rows = all_rows;
  plan.last_rows = {};
  plan.split_keys = ceil_div(blocks, wanted) * kKeyBlock;
  plan.splits = ceil_div(blocks * kKeyBlock, plan.split_keys);
}

Staging staging_of(const Problem& problem, KernelShape shape) {
  switch (problem.dtype) {
    case DType::kFloat64:
      return Staging::kReference;
    case DType::kFloat32:
      return Staging::kInPlace;
    case DType::kBFloat16:
      return shape.has_bfloat16_dot ? Staging::kPairs : Staging::kConverted;
    default:
      return Staging::kConverted;
  }
}

std::string_view name(Staging staging) {
  switch (staging) {
    case Staging::kInPlace:
      return "in place";
    case Staging::kConverted:
      return "converted to float32";
    case Staging::kPairs:
      return "in bfloat16 pairs";
    default:
      return "reference loops in double precision";
  }
}

}  // namespace

ForwardPlan plan_forward(const Problem& problem, KernelShape shape) {
  ForwardPlan plan{.staging = staging_of(problem, shape),
                   .block_lanes = shape.block_lanes,
                   .rows = problem.q_len * problem.group(),
                   .last_key = std::min(problem.last_key(problem.q_len - 1), problem.kv_len),
                   .last_rows = plan_last_rows(problem, shape.block_lanes)};
  plan.first_key = std::min(problem.first_key(0), plan.last_key);
  plan.rows -= plan.last_rows.rows;
  const std::int64_t heads = problem.batch * problem.kv_heads;
  split_keys(heads, plan);
  const std::int64_t blocks = ceil_div(plan.rows, plan.block_lanes);
  plan.has_short_heads =
      heads >= kEnoughTasks && blocks <= kMaxBlocksPerTask && bytes_of_head(problem) <= kShortHead;
  if (plan.staging != Staging::kInPlace || plan.has_short_heads)
    plan.blocks_per_task = static_cast<int>(std::min(
        blocks, std::clamp<std::int64_t>(heads * blocks / kEnoughTasks, 1, kMaxBlocksPerTask)));
  plan.chunks_per_head = ceil_div(blocks, plan.blocks_per_task);
  plan.tasks = heads * plan.chunks_per_head * plan.splits;
  return plan;
}

std::string to_string(const ForwardPlan& plan, std::string_view instruction_set) {
  std::ostringstream text;
  if (plan.staging == Staging::kReference) return std::string(name(plan.staging));
  text << instruction_set << ": " << plan.block_lanes << " lanes x " << kKeyBlock << " keys, "
       << name(plan.staging) << ", " << plan.blocks_per_task
       << (plan.blocks_per_task == 1 ? " block a task, " : " blocks a task, ");
  if (plan.splits > 1) text << "keys in " << plan.splits << " parts of " << plan.split_keys << ", ";
  text << plan.tasks << (plan.tasks == 1 ? " task" : " tasks");
  if (plan.last_rows.rows > 0)
    text << ", last " << plan.last_rows.rows << (plan.last_rows.rows == 1 ? " row" : " rows")
         << " as decode";
  return text.str();
}

}  // namespace sdpa::cpu
