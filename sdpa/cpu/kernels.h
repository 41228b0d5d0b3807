// SPDX-License-Identifier: MIT
#pragma once

// The kernels of one instruction set; included by its translation unit alone.

#include "sdpa/cpu/instruction_set.h"
#include "sdpa/cpu/score.h"
#include "sdpa/reference.h"

namespace sdpa::cpu {

template <class S>
Kernels make_kernels() {
  return {.forward = reference::forward,
          .backward = reference::backward,
          .block_lanes = S::kLanes * S::kColumns,
          .has_bfloat16_dot = S::kHasBFloat16Dot};
}

}  // namespace sdpa::cpu
