// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "sdpa/cpu/instruction_set.h"
#include "sdpa/problem.h"

namespace sdpa::cpu {

/// The most rows of a key/value head (queries times the heads that share it) that decode holds.
constexpr std::int64_t kMaxDecodeRows = 16;

/// Fewer keys are faster on vectors than in tiles, which would be mostly empty.
constexpr std::int64_t kMinTileKeys = 32;

/// A pass with few queries, cut into tasks: each takes a range of keys of one key/value head for
/// all of its rows, so that keys and values are read once. A function of the shape alone: results
/// do not depend on the number of threads.
struct DecodePlan {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;                     ///< of one key/value head
  std::int64_t first_key = 0, last_key = 0;  ///< what any row may see by position
  std::int64_t split_keys = 0;               ///< keys of a task
  std::int64_t splits = 1;                   ///< tasks of a head
  std::int64_t tasks = 0;

  bool operator==(const DecodePlan&) const = default;
};

/// Whether a forward pass is bound by reading keys and values, and better served by decode. Its
/// rows have to fit a block of lanes, for whose masks they share the code.
bool is_decode(const Problem& problem, KernelShape shape);

DecodePlan plan_decode(const Problem& problem);

/// The last rows of a key/value head where whole blocks of `block_lanes` leave too few of them for
/// lanes, a task a head; no rows where they leave none or enough.
DecodePlan plan_last_rows(const Problem& problem, int block_lanes);

/// "avx512: decode, 4 rows, keys in 8 parts of 1024, 64 tasks"
std::string to_string(const DecodePlan& plan, std::string_view instruction_set);

}  // namespace sdpa::cpu
