// SPDX-License-Identifier: MIT
// sysctlbyname is in libSystem; it is declared here because no SDK is needed for anything else.
#include <cstddef>

#include "sdpa/cpu/arm_features.h"

extern "C" int sysctlbyname(const char* name, void* old_value, std::size_t* old_size,
                            void* new_value, std::size_t new_size);

namespace sdpa::cpu {

bool has_arm_bfloat16() {
  int value = 0;
  std::size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace sdpa::cpu
