// SPDX-License-Identifier: MIT
// Short forms for the simulator's own tests.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "bindings.h"

namespace sim {

inline void expect_none(const std::vector<std::string>& failures) {
  for (const std::string& failure : failures) ADD_FAILURE() << failure;
}

/// Expects exactly this: no fault if `part` is empty, else a first fault that contains it.
inline void expect_fault(const Result& result, const std::string& part) {
  if (part.empty()) {
    EXPECT_TRUE(result.ok()) << result.faults[0];
    return;
  }
  ASSERT_FALSE(result.ok()) << "expected: " << part;
  EXPECT_NE(result.faults[0].find(part), std::string::npos)
      << "expected: " << part << "\n     got: " << result.faults[0];
}

}  // namespace sim
