// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sdpa {

/// A kernel's host name, and the threadgroup memory that its source declares for tiles.
struct StagedSize {
  std::string kernel;
  std::int64_t bytes;
};

/// For specializations of every dtype, narrow and wide.
std::vector<StagedSize> staged_sizes();

}  // namespace sdpa
