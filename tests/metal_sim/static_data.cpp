// SPDX-License-Identifier: MIT
#include "static_data.h"

#include <link.h>

#include <cstdint>

namespace sim {
namespace {

struct Range {
  uintptr_t begin = 0, bytes = 0;

  bool contains(uintptr_t address) const { return address - begin < bytes; }
};

struct Search {
  uintptr_t address;
  Range found;
};

// Called for each loaded object; not zero ends the search.
int find_segment(dl_phdr_info* object, size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  for (int i = 0; i < object->dlpi_phnum; i++) {
    const auto& segment = object->dlpi_phdr[i];
    const Range range{object->dlpi_addr + segment.p_vaddr, segment.p_memsz};
    if (segment.p_type != PT_LOAD || !range.contains(search.address)) continue;
    search.found = range;
    return 1;
  }
  return 0;
}

}  // namespace

bool is_static_data(const void* address) {
  // Kernels read their constants again and again, and the search takes a microsecond.
  static thread_local Range last;
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  if (last.contains(wanted)) return true;
  Search search{wanted, {}};
  dl_iterate_phdr(find_segment, &search);
  if (search.found.bytes) last = search.found;
  return search.found.bytes != 0;
}

}  // namespace sim
