// SPDX-License-Identifier: MIT
// What a 64-bit Arm build has. Chosen by CMake; its siblings serve x86-64 and everything else.
#include "sdpa/cpu/arm_features.h"
#include "sdpa/cpu/instruction_set.h"

namespace sdpa::cpu {

std::span<const InstructionSet> instruction_sets() {
  static const InstructionSet sets[] = {
      {.name = "neon_bf16",
       .kernels = neon_bf16_kernels(),
       .runs_here = has_arm_bfloat16(),
       .is_preferred = true},
      {.name = "neon", .kernels = neon_kernels(), .runs_here = true, .is_preferred = true},
      {.name = "portable", .kernels = portable_kernels(), .runs_here = true, .is_preferred = true},
  };
  return sets;
}

}  // namespace sdpa::cpu
