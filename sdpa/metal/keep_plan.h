// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/metal/plan.h"

namespace sdpa::metal {

/// Writes which pairs dropout keeps: [batch, q_heads, q_len, kv_len] bytes under Role::kKeep.
Plan plan_keep(const Problem& problem);

}  // namespace sdpa::metal
