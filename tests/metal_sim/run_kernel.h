// SPDX-License-Identifier: MIT
// Short forms for the simulator's own tests.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "sim.h"

namespace sim {

template <class T>
Binding buffer(int index, std::vector<T>& values) {
  return {Binding::Kind::kBuffer, index, values.data(), values.size() * sizeof(T)};
}

template <class T>
Binding bytes(int index, const T& value) {
  return {Binding::Kind::kBytes, index, const_cast<T*>(&value), sizeof(T)};
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
