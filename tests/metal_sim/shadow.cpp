// SPDX-License-Identifier: MIT
#include "shadow.h"

#include "mapping.h"

namespace sim {
namespace {

// How far apart two accesses are: the same lane, SIMD group, threadgroup, or none of these.
int distance(Stamp a, Stamp b) {
  if (serial_of(a) != serial_of(b)) return 3;
  if (lane_of(a) / 32 != lane_of(b) / 32) return 2;
  return lane_of(a) != lane_of(b);
}

}  // namespace

Shadow::Shadow(size_t bytes) : mapped_bytes_((bytes + 1) / 2 * sizeof(Cell)) {
  cells_ = reinterpret_cast<Cell*>(map_memory(mapped_bytes_));
}

Shadow::~Shadow() { unmap_memory(cells_, mapped_bytes_); }

void Shadow::note_reader(Cell& cell, Stamp reader, Stamp me, const View& view) {
  if (same_moment(reader, me)) me |= reader;
  if (!reader || view.is_ordered(reader)) {
    cell.reader.store(me, std::memory_order_relaxed);
    return;
  }
  const Stamp far = cell.far_reader.load(std::memory_order_relaxed);
  if (far == me) return;
  if (!far || view.is_ordered(far) || distance(reader, me) > distance(reader, far))
    cell.far_reader.store(me, std::memory_order_relaxed);
}

}  // namespace sim
