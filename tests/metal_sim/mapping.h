// SPDX-License-Identifier: MIT
// Address space from the system: zero-filled, committed page by page when touched.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sim {

uint8_t* map_memory(size_t bytes);
void unmap_memory(void* memory, size_t bytes);
/// Gives the pages back; they read as zero when touched again.
void release_pages(void* memory, size_t bytes);
/// Makes one page of a stack trap, so that an overflow is a crash and not a mystery.
void protect_page(void* page);

constexpr size_t kPage = 4096;

}  // namespace sim
