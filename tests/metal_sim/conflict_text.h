// SPDX-License-Identifier: MIT
// Races in words.
#pragma once
#include <string>

#include "shadow.h"

namespace sim {

inline const char* conflict_text(const Conflict& conflict, const std::string& access) {
  if (access == "read") return "race: read after write without a barrier";
  return conflict.past_was_write ? "race: write after write without a barrier"
                                 : "race: write after read without a barrier";
}

/// Who was there before.
inline std::string past_text(const Conflict& conflict, Stamp me) {
  if (serial_of(conflict.past) != serial_of(me)) return ", against another threadgroup";
  return ", against thread " + std::to_string(lane_of(conflict.past));
}

}  // namespace sim
