// SPDX-License-Identifier: MIT
// MLX's attention kernels, launched as MLX launches them on a GPU without suffix (M1, M4).
#pragma once
#include "attention_arguments.h"

namespace sim {

/// Of the tiled kernel: keys a block, and SIMD groups side by side in a block of 32 queries.
struct SteelShape {
  int keys = 32, columns = 1;
};

/// The tiled kernel, for many queries. Causality is that of the lower right.
Result run_steel(Attention& call, const SteelShape& shape, uint64_t seed);

/// The kernel for few queries.
Result run_vector(Attention& call, uint64_t seed);

/// Few queries, with the keys split over so many blocks: two launches, counted together.
/// `first_kernel` is "vector_first_" or "vector_first_of_8_".
Result run_split_vector(Attention& call, const char* first_kernel, int blocks, uint64_t seed);

}  // namespace sim
