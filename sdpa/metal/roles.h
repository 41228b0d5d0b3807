// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/metal/plan.h"

namespace sdpa::metal {

/// Calls `visit(role, view)` for each tensor of a call, absent ones too.
template <typename Visit>
void for_each_role(const ForwardTensors& t, const Visit& visit) {
  visit(Role::kQuery, t.query);
  visit(Role::kKey, t.key);
  visit(Role::kValue, t.value);
  visit(Role::kMask, t.mask);
  visit(Role::kSinks, t.sinks);
  visit(Role::kOut, t.out);
  visit(Role::kLse, t.lse);
}

template <typename Visit>
void for_each_role(const BackwardTensors& t, const Visit& visit) {
  visit(Role::kQuery, t.query);
  visit(Role::kKey, t.key);
  visit(Role::kValue, t.value);
  visit(Role::kMask, t.mask);
  visit(Role::kSinks, t.sinks);
  visit(Role::kOut, t.out);
  visit(Role::kLse, t.lse);
  visit(Role::kGradOut, t.grad_out);
  visit(Role::kGradLse, t.grad_lse);
  visit(Role::kGradQuery, t.grad_query);
  visit(Role::kGradKey, t.grad_key);
  visit(Role::kGradValue, t.grad_value);
  visit(Role::kGradMask, t.grad_mask);
  visit(Role::kGradSinks, t.grad_sinks);
}

}  // namespace sdpa::metal
