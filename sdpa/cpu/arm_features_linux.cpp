// SPDX-License-Identifier: MIT
#include <sys/auxv.h>

#include "sdpa/cpu/arm_features.h"

namespace sdpa::cpu {

bool has_arm_bfloat16() {
  constexpr unsigned long kBFloat16 = 1ul << 14;  // of the second word of capabilities
  return (getauxval(AT_HWCAP2) & kBFloat16) != 0;
}

}  // namespace sdpa::cpu
