// SPDX-License-Identifier: MIT
// Short forms for a dispatch's argument table.
#pragma once
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

}  // namespace sim
