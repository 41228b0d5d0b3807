// SPDX-License-Identifier: MIT
#include "mapping.h"

#include <sys/mman.h>

#include <stdexcept>
#include <string>

namespace sim {

uint8_t* map_memory(size_t bytes) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED)
    throw std::runtime_error("the simulator cannot reserve " + std::to_string(bytes) +
                             " bytes of address space");
  return static_cast<uint8_t*>(memory);
}

void unmap_memory(void* memory, size_t bytes) { munmap(memory, bytes); }

void release_pages(void* memory, size_t bytes) { madvise(memory, bytes, MADV_DONTNEED); }

void protect_page(void* page) { mprotect(page, kPage, PROT_NONE); }

}  // namespace sim
