// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "sdpa/cpu/decode_plan.h"
#include "sdpa/cpu/instruction_set.h"

namespace sdpa::cpu {

/// How keys and values reach the kernel.
enum class Staging : std::uint8_t {
  kInPlace,    ///< float32, read where they lie
  kConverted,  ///< a block at a time, to float32
  kPairs,      ///< bfloat16, two elements a word for the dot product of pairs
  kReference,  ///< float64: no kernel, the reference's loops
};

/// The forward pass cut into tasks. A function of the problem and the instruction set alone, never
/// of the number of threads: results do not depend on it.
struct ForwardPlan {
  Staging staging = Staging::kInPlace;
  int block_lanes = 0;           ///< rows side by side in a block
  int blocks_per_task = 1;       ///< blocks that share what a task stages
  bool has_short_heads = false;  ///< a task is a head, and the next one's rows fit the cache beside
  std::int64_t rows = 0;         ///< of one key/value head: queries times its group
  std::int64_t chunks_per_head = 0;          ///< a chunk is the blocks of a task
  std::int64_t first_key = 0, last_key = 0;  ///< what any row may see by position
  std::int64_t split_keys = 0;               ///< keys of a task, where they are split
  std::int64_t splits = 1;                   ///< tasks of a chunk
  std::int64_t tasks = 0;
  DecodePlan last_rows;  ///< of each head, where they are too few to fill lanes

  bool operator==(const ForwardPlan&) const = default;
};

ForwardPlan plan_forward(const Problem& problem, KernelShape shape);

/// "avx512: 48 lanes x 128 keys, in place, 1 block a task, 344 tasks"; where keys are split, ",
/// keys in 32 parts of 1024" follows the blocks
std::string to_string(const ForwardPlan& plan, std::string_view instruction_set);

}  // namespace sdpa::cpu
