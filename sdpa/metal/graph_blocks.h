// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "sdpa/metal/attention_graph.h"

namespace sdpa::metal {

/// Some queries of every head, and the keys that any of them sees by causality and window. There is
/// at least one key, though it may be hidden from all.
struct Block {
  std::int64_t row = 0, rows = 0;
  std::int64_t key = 0, keys = 0;
  bool hides_before = false;  ///< the window hides some of its pairs on the left
  bool hides_after = false;   ///< causality or the window hides some on the right
};

/// The blocks of a graph, in order.
std::vector<Block> blocks_of(const GraphSpec& spec);

/// Whether macOS 27's operator knows the causal mask by itself.
bool uses_causal_operator(const GraphSpec& spec);

}  // namespace sdpa::metal
