// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sdpa/cpu/lanes.h"
#include "sdpa/problem.h"

namespace sdpa::cpu {

/// A unit is at most this many rows (queries of all heads of a group, see lanes.h). Keys, values
/// and their gradients pass through the second-level cache once a unit.
constexpr std::int64_t kUnitRows = 192;

/// P and dS exist for this many rows of a unit at a time: two register tiles of AVX-512 side by
/// side.
constexpr std::int64_t kSlabRows = 96;

/// Units are a multiple of this many rows, so that every instruction set fills its vectors.
constexpr std::int64_t kRowMultiple = 16;

/// Keys whose P and dS exist at a time. A key block has two such steps.
constexpr int kKeyStep = 64;

/// One task of a (batch, key head): units [first_unit, last_unit) against key blocks [first_block,
/// last_block).
struct BackwardPart {
  std::int64_t first_unit = 0, last_unit = 0;
  std::int64_t first_block = 0, last_block = 0;
  std::int64_t key_offset = 0;  ///< rows before this part's in the private key gradients
  std::int64_t query_slot = 0;  ///< which private query gradient it writes
};

/// How a backward pass is cut. It follows the shape alone, so that the order of every sum, and so
/// each bit of the result, is the same for any number of threads.
struct BackwardPlan {
  std::int64_t unit_rows = 0;
  std::int64_t units = 0;           ///< of a (batch, key head)
  std::int64_t query_slots = 1;     ///< private query gradients; 1: none, they are written directly
  std::int64_t key_rows = 0;        ///< rows of private key gradients of a (batch, key head)
  std::int64_t heads_per_wave = 1;  ///< the most (batch, key head) pairs in flight at once
  std::vector<BackwardPart> parts;  ///< the largest first

  bool is_split() const { return parts.size() > 1; }

  /// Task n of `heads` heads: the largest part of every head, then the next. The last tasks to be
  /// handed out are small, so that threads end together.
  const BackwardPart& part_of(std::int64_t task, std::int64_t heads) const {
    return parts[static_cast<std::size_t>(task / heads)];
  }

  static std::int64_t head_of(std::int64_t task, std::int64_t heads) { return task % heads; }
};

/// Key blocks [first, last).
struct BlockRange {
  std::int64_t first = 0, last = 0;
};

/// The key blocks that rows [row, row + rows) see by position.
BlockRange visible_blocks(const Problem& problem, std::int64_t row, std::int64_t rows);

BackwardPlan plan_backward(const Problem& problem);

/// "64-row units, 8 parts a key head, keys in 2": one line for people.
std::string to_string(const BackwardPlan& plan);

/// Floats in a row of our own memory, for `columns` of a tensor: whole vectors.
constexpr std::int64_t padded_columns(std::int64_t columns) {
  return ceil_div(columns, kRowMultiple) * kRowMultiple;
}

/// Floats from a row to the next where a product reads few columns of many rows over and over: an
/// odd number of cache lines. Rows of an even number would share sets: of 96 rows of 128 floats a
/// panel of 64 columns, 24 KiB, falls into half a first-level cache of 32 KiB, and came out of the
/// second level for every tile (fp32 D128 L2048, one Zen 4 core, interleaved: dense from 440 to 420
/// ms and from 432 to 424, causal with 32 heads on 8 from 888 to 838).
constexpr std::int64_t spread_columns(std::int64_t padded) {
  constexpr std::int64_t kLine = 16, kPanel = 64;
  return padded > kPanel && padded / kLine % 2 == 0 ? padded + kLine : padded;
}

}  // namespace sdpa::cpu
