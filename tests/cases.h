// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sdpa/problem.h"

// The one table of named cases. The C++ conformance test, the Python tests, the benchmark and the
// command all take their cases from here. It needs the library's types and nothing else.

namespace sdpa::cases {

/// Which dimensions of a mask are those of the scores; the others are 1 and broadcast.
enum class MaskShape : std::uint8_t {
  kNone,
  kFull,     ///< [batch, 1, q_len, kv_len]
  kPerHead,  ///< [batch, q_heads, q_len, kv_len]
  kMatrix,   ///< [q_len, kv_len]
  kKeys,     ///< [batch, 1, 1, kv_len]: key padding
  kRows,     ///< [batch, 1, q_len, 1]
};

/// What a mask hides. A bool mask says false there, an additive one has -infinity; elsewhere they
/// have true and a number between -2 and 0.
enum class MaskPattern : std::uint8_t {
  kRandom,     ///< one pair in five of a bool mask, one in ten of an additive one
  kSoft,       ///< nothing: an additive mask of numbers only
  kEmptyRow,   ///< all keys of the first query
  kEmptyRows,  ///< all keys of every third query
  kTail,       ///< the last third of the keys, for every query: padding
  kBlocks,     ///< squares of 32 by 32 in turn: hidden, mixed, visible; heads start in turn
  kAll,        ///< everything
};

/// The mask of a case. A dtype of bool selects, a float dtype is added to the scores.
struct MaskSpec {
  MaskShape shape = MaskShape::kNone;
  DType dtype = DType::kBool;
  MaskPattern pattern = MaskPattern::kRandom;
};

/// How the elements of query, key, value and the outputs lie in memory.
enum class Layout : std::uint8_t {
  kContiguous,
  kTransposed,     ///< heads inside lengths: [batch, len, heads, dim] in memory
  kSliced,         ///< the inside of a larger tensor, at an odd offset
  kExpandedBatch,  ///< one batch entry, with stride 0: key, value and the gradient of the output
  kColumnStride,   ///< every second element of a row: the last stride is 2
  kHugeRows,       ///< rows more than 2^31 elements apart (virtual memory only)
  kHugeHeads,      ///< heads more than 2^31 elements apart (virtual memory only)
};

/// One attention call to be checked or timed.
struct Case {
  std::string name = {};   ///< unique within its suite
  std::string suite = {};  ///< filled in by suite()
  DType dtype = DType::kFloat32;
  std::int64_t batch = 1;
  std::int64_t q_heads = 1;
  std::int64_t kv_heads = 1;
  std::int64_t q_len = 1;
  std::int64_t kv_len = 1;
  std::int64_t qk_dim = 1;
  std::int64_t v_dim = 1;
  MaskSpec mask = {};
  Causal causal = Causal::kNone;
  Window window = {};
  double softcap = 0;
  bool sinks = false;
  double dropout = 0;
  std::optional<double> scale = std::nullopt;
  Layout layout = Layout::kContiguous;
  bool grad_lse = false;  ///< the log-sum-exp takes part in the loss
  double weight = 1;      ///< in weighted means over a suite
};

/// The cases of a suite. Throws std::invalid_argument naming the known ones.
std::vector<Case> suite(std::string_view name);

/// realistic, correctness, extended, general, models, masks, training, decode, short, speed,
/// conformance.
std::span<const std::string_view> suite_names();

/// "bf16 B1 H8/2 L128x256 D64 causal mask(bool keys) dropout=0.1": the fields as one line.
std::string describe(const Case& spec);

/// Whether a dimension is 0: the door keeps such a case from back ends.
bool has_empty_extent(const Case& spec);

/// The scale, causality, window, soft cap and dropout of a case; `seed` is that of dropout.
Attributes attributes(const Case& spec, std::uint64_t seed);

/// The extents of a case's mask, all 0 without one.
struct MaskExtents {
  std::int64_t batch = 0, heads = 0, rows = 0, columns = 0;
};

MaskExtents mask_extents(const Case& spec);

/// The conformance suite, which is longer than all others: small shapes, odd sizes, all features.
std::vector<Case> conformance_cases();

}  // namespace sdpa::cases
