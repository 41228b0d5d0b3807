// SPDX-License-Identifier: MIT
// torch's Metal kernels for attention, launched as torch launches them.
#pragma once
#include "attention_arguments.h"

namespace sim {

/// Of the tiled kernel: rows a block, and the SIMD groups that share them.
struct PrefillShape {
  int rows = 32, groups = 4;
};

/// The tiled kernel, for many queries; `variant` is "dense", "causal", "masked" or "added".
Result run_prefill(Attention& call, const std::string& variant, const PrefillShape& shape,
                   uint64_t seed);

/// The kernel for few queries; `variant` is "decode_", "decode_causal_" or "decode_masked_".
Result run_decode(Attention& call, const std::string& variant, uint64_t seed);

/// Few queries, with the keys split over 32 blocks: two launches, counted together.
Result run_split_decode(Attention& call, uint64_t seed);

}  // namespace sim
