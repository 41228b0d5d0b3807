// SPDX-License-Identifier: MIT
#include "sdpa/metal/keep_plan.h"

#include "sdpa/metal/specialization.h"

namespace sdpa::metal {
namespace {

constexpr std::int64_t kSimdWidth = 32;
constexpr std::int64_t kKeysOfGroup = 4 * kSimdWidth;

}  // namespace

Plan plan_keep(const Problem& s) {
  const Specialization spec{.kernel = "keep_pairs", .groups = 1, .features = kDropout};
  Plan plan;
  plan.dispatches.push_back({.kernel = host_name(spec),
                             .specialization = instantiation(spec),
                             .grid = {.x = (s.kv_len + kKeysOfGroup - 1) / kKeysOfGroup,
                                      .y = s.q_len,
                                      .z = s.q_heads * s.batch},
                             .group = {.x = kSimdWidth},
                             .buffers = {Role::kKeep, Role::kParams}});
  plan.scratch = {{Role::kKeep, s.batch * s.q_heads * s.q_len * s.kv_len}};
  AttentionParams& p = plan.params;
  p.batch = s.batch;
  p.q_heads = s.q_heads;
  p.q_len = s.q_len;
  p.kv_len = s.kv_len;
  set_dropout(p, s.dropout);
  return plan;
}

}  // namespace sdpa::metal
