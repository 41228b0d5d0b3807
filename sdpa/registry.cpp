// SPDX-License-Identifier: MIT
#include "sdpa/registry.h"

#include <algorithm>
#include <array>

#include "sdpa/cpu/backend.h"
#include "sdpa/metal/backend.h"
#include "sdpa/metal/mpsgraph_backend.h"

namespace sdpa {

std::span<const Backend* const> backends() {
  static const std::array<const Backend*, 4> list{&metal::backend(), &metal::graph_backend(),
                                                  &metal::proto_backend(), &cpu::backend()};
  return list;
}

const Backend* find_backend(std::string_view name) {
  const auto list = backends();
  const auto found = std::ranges::find(list, name, &Backend::name);
  return found == list.end() ? nullptr : *found;
}

}  // namespace sdpa
