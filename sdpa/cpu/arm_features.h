// SPDX-License-Identifier: MIT
#pragma once

namespace sdpa::cpu {

/// Whether this Arm processor has the bfloat16 dot product (FEAT_BF16). Each system says so in its
/// own way, in a source of its own.
bool has_arm_bfloat16();

}  // namespace sdpa::cpu
