// SPDX-License-Identifier: MIT
// What a build for another processor has. Chosen by CMake; its siblings serve x86-64 and Arm.
#include "sdpa/cpu/instruction_set.h"

namespace sdpa::cpu {

std::span<const InstructionSet> instruction_sets() {
  static const InstructionSet sets[] = {
      {.name = "portable", .kernels = portable_kernels(), .runs_here = true, .is_preferred = true},
  };
  return sets;
}

}  // namespace sdpa::cpu
