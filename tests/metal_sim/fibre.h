// SPDX-License-Identifier: MIT
// Stacks that can be switched: the bare minimum that lanes need.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sim {

/// Suspends the caller in `*save` and resumes `to`, a context that was suspended or just made.
void switch_fibre(void** save, void* to);

/// A context that, when first resumed, calls `entry` on the stack that ends at `top`. `entry` must
/// never return.
void* make_fibre(uint8_t* top, size_t bytes, void (*entry)());

}  // namespace sim
