// SPDX-License-Identifier: MIT
#pragma once

// The kernels of one instruction set; included by its translation unit alone.

#include "sdpa/cpu/backward_merge.h"
#include "sdpa/cpu/backward_tasks.h"
#include "sdpa/cpu/forward.h"
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/cpu/spin.h"

namespace sdpa::cpu {

template <class S>
Kernels make_kernels() {
  return {.forward = forward<S>,
          .backward = {.run_part = run_part<S>,
                       .merge_keys = merge_keys<S>,
                       .merge_queries = merge_queries<S>,
                       .add_mask_gradient = add_mask_gradient<S>,
                       .own_floats = panel_floats<S>},
          .shape = shape_of<S>(),
          .spin = spin_loops<S>()};
}

}  // namespace sdpa::cpu
