// SPDX-License-Identifier: MIT
#pragma once

// What sdpa/metal/kernels/prelude.metal is on a Mac: comes before the kernels. Loops run as written
// here; a compiler's unrolling changes nothing.
#include <metal_stdlib>
using namespace metal;

#define SDPA_UNROLL
