// SPDX-License-Identifier: MIT
#include "static_data.h"

#include <link.h>

#include <cstdint>

namespace sim {
namespace {

// Called for each loaded object; not zero ends the search.
int holds_address(dl_phdr_info* object, size_t, void* address) {
  const auto wanted = *static_cast<uintptr_t*>(address);
  for (int i = 0; i < object->dlpi_phnum; i++) {
    const auto& segment = object->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD &&
        wanted - (object->dlpi_addr + segment.p_vaddr) < segment.p_memsz)
      return 1;
  }
  return 0;
}

}  // namespace

bool is_static_data(const void* address) {
  auto wanted = reinterpret_cast<uintptr_t>(address);
  return dl_iterate_phdr(holds_address, &wanted) != 0;
}

}  // namespace sim
