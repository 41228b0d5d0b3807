// SPDX-License-Identifier: MIT
#include "shadow.h"

#include "mapping.h"

namespace sim {

Shadow::Shadow(size_t bytes) : mapped_bytes_((bytes + 1) / 2 * sizeof(Cell)) {
  cells_ = reinterpret_cast<Cell*>(map_memory(mapped_bytes_));
}

Shadow::~Shadow() { unmap_memory(cells_, mapped_bytes_); }

}  // namespace sim
