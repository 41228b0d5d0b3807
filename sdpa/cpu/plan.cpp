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
                   .rows = problem.q_len * problem.group()};
  const std::int64_t heads = problem.batch * problem.kv_heads;
  const std::int64_t blocks = ceil_div(plan.rows, plan.block_lanes);
  if (plan.staging != Staging::kInPlace)
    plan.blocks_per_task = static_cast<int>(
        std::clamp<std::int64_t>(heads * blocks / kEnoughTasks, 1, kMaxBlocksPerTask));
  plan.tasks_per_head = ceil_div(blocks, plan.blocks_per_task);
  plan.tasks = heads * plan.tasks_per_head;
  return plan;
}

std::string to_string(const ForwardPlan& plan, std::string_view instruction_set) {
  std::ostringstream text;
  if (plan.staging == Staging::kReference) return std::string(name(plan.staging));
  text << instruction_set << ": " << plan.block_lanes << " lanes x " << kKeyBlock << " keys, "
       << name(plan.staging) << ", " << plan.blocks_per_task
       << (plan.blocks_per_task == 1 ? " block a task, " : " blocks a task, ") << plan.tasks
       << (plan.tasks == 1 ? " task" : " tasks");
  return text.str();
}

}  // namespace sdpa::cpu
