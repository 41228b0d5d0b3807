// SPDX-License-Identifier: MIT
//
// Asks the kernels' own source. In a file of its own, for Metal's names are everywhere in it.
#include "tests/metal_kernels/staged_sizes.h"

#include "prelude.h"
#include "sdpa/metal/kernels/tile.h"

namespace sdpa {
namespace {

template <typename T, int kQk, int kV, int kTile>
StagedSize size_of_spec(const char* name, const char* dtype) {
  constexpr int kGroups = 4;
  using S = Spec<T, kQk, kV, 1, kTile, kGroups, kStaged>;
  return {std::string(name) + "_" + dtype + "_q" + std::to_string(kQk) + "_v" + std::to_string(kV) +
              "_c1_t" + std::to_string(kTile) + "_g" + std::to_string(kGroups) + "_f" +
              std::to_string(int(kStaged)),
          static_cast<std::int64_t>(int(S::kStagedElements) * sizeof(T))};
}

template <typename T>
void add_sizes(std::vector<StagedSize>& list, const char* dtype) {
  for (const char* name : {"forward", "grad_query", "grad_key_value"}) {
    list.push_back(size_of_spec<T, 8, 8, 4>(name, dtype));
    list.push_back(size_of_spec<T, 5, 3, 2>(name, dtype));
    list.push_back(size_of_spec<T, 64, 8, 1>(name, dtype));
  }
}

}  // namespace

std::vector<StagedSize> staged_sizes() {
  std::vector<StagedSize> list;
  add_sizes<float>(list, "float");
  add_sizes<half>(list, "half");
  add_sizes<bfloat>(list, "bfloat");
  return list;
}

}  // namespace sdpa
