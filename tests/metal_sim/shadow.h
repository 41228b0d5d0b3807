// SPDX-License-Identifier: MIT
// Race detection: who accessed which bytes last, and whether a barrier lies between.
//
// Simulated execution is a sequence; each fenced barrier advances a clock. An access is stamped
// with the threadgroup, the lane and the time. Two accesses to one byte, at least one of them a
// write, are a race unless the same lane made both or the later lane has passed a fenced barrier
// that both took part in since. Threadgroups of one launch are never ordered.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace sim {

/// serial (30 bits) | time (22 bits) | byte mask (2 bits) | lane (10 bits). Zero: no access.
/// The serial number counts all threadgroups ever run, so that old stamps need no clearing.
using Stamp = uint64_t;

constexpr int kLaneBits = 10, kMaskBits = 2, kTimeBits = 22;
constexpr Stamp kLaneMask = (Stamp{1} << kLaneBits) - 1;
constexpr Stamp kByteMask = ((Stamp{1} << kMaskBits) - 1) << kLaneBits;
constexpr Stamp kTimeMask = (Stamp{1} << kTimeBits) - 1;

constexpr Stamp make_stamp(uint64_t serial, uint64_t time, unsigned lane) {
  return serial << (kTimeBits + kMaskBits + kLaneBits) | time << (kMaskBits + kLaneBits) | lane;
}

constexpr unsigned lane_of(Stamp stamp) { return unsigned(stamp & kLaneMask); }

constexpr uint64_t time_of(Stamp stamp) { return stamp >> (kMaskBits + kLaneBits) & kTimeMask; }

constexpr uint64_t serial_of(Stamp stamp) { return stamp >> (kTimeBits + kMaskBits + kLaneBits); }

/// What the running lane knows to be ordered before it, in one memory space.
struct View {
  Stamp me = 0;                 // with an empty byte mask
  uint64_t first_serial = 0;    // of this launch: what is older is ordered
  uint64_t group_time = 0;      // accesses of this threadgroup before this time are ordered
  uint64_t simdgroup_time = 0;  // those of this SIMD group before this one, too

  bool is_ordered(Stamp past) const {
    if (serial_of(past) < first_serial) return true;
    if (serial_of(past) != serial_of(me)) return false;
    if (lane_of(past) == lane_of(me) || time_of(past) < group_time) return true;
    return lane_of(past) / 32 == lane_of(me) / 32 && time_of(past) < simdgroup_time;
  }
};

/// The conflict found, if `past` is not 0.
struct Conflict {
  Stamp past = 0;
  bool past_was_write = false;
};

/// Stamps for a stretch of memory. A cell covers two bytes: the last writer and two readers.
///
/// Two readers are enough to convict any later writer: the second slot holds the reader furthest
/// from the first (another threadgroup, else another SIMD group, else another lane), so at least
/// one of them is not the writer and not of its group, if there was any such reader. Single bytes
/// of a cell used by different lanes can hide each other's stamps; they never raise a false alarm.
/// Stamps of device memory are shared between threads without locks: two accesses in the same
/// nanosecond may miss each other.
class Shadow {
 public:
  /// Reserves, without committing, cells for this many bytes.
  explicit Shadow(size_t bytes);
  ~Shadow();
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  Conflict load(size_t offset, size_t bytes, const View& view) {
    return each_cell(offset, bytes, view,
                     [this, &view](size_t cell, Stamp me) { return load_cell(cell, me, view); });
  }

  Conflict store(size_t offset, size_t bytes, const View& view) {
    return each_cell(offset, bytes, view,
                     [this, &view](size_t cell, Stamp me) { return store_cell(cell, me, view); });
  }

 private:
  using Slot = std::atomic<Stamp>;

  struct Cell {
    Slot writer, reader, far_reader;
  };

  template <class Visit>
  Conflict each_cell(size_t offset, size_t bytes, const View& view, Visit visit) {
    const size_t end = offset + bytes;
    for (size_t cell = offset / 2; cell * 2 < end; cell++) {
      Stamp mask = kByteMask;
      if (cell * 2 < offset) mask &= Stamp{2} << kLaneBits;
      if (cell * 2 + 1 >= end) mask &= Stamp{1} << kLaneBits;
      const Conflict conflict = visit(cell, view.me | mask);
      if (conflict.past) return conflict;
    }
    return {};
  }

  static bool conflicts(Stamp past, Stamp me, const View& view) {
    return (past & me & kByteMask) && !view.is_ordered(past);
  }

  Conflict load_cell(size_t index, Stamp me, const View& view) {
    Cell& cell = cells_[index];
    const Stamp reader = cell.reader.load(std::memory_order_relaxed);
    if (reader != me) note_reader(cell, reader, me, view);
    const Stamp writer = cell.writer.load(std::memory_order_relaxed);
    if (writer && conflicts(writer, me, view)) return {writer, true};
    return {};
  }

  Conflict store_cell(size_t index, Stamp me, const View& view) {
    Cell& cell = cells_[index];
    const Stamp writer = cell.writer.load(std::memory_order_relaxed);
    if (writer != me) {
      if (conflicts(writer, me, view)) return {writer, true};
      cell.writer.store(same_moment(writer, me) ? writer | me : me, std::memory_order_relaxed);
    }
    for (Slot* slot : {&cell.reader, &cell.far_reader}) {
      const Stamp reader = slot->load(std::memory_order_relaxed);
      if (reader && conflicts(reader, me, view)) return {reader, false};
    }
    return {};
  }

  static bool same_moment(Stamp a, Stamp b) { return (a & ~kByteMask) == (b & ~kByteMask); }

  static void note_reader(Cell& cell, Stamp reader, Stamp me, const View& view);

  Cell* cells_ = nullptr;
  size_t mapped_bytes_ = 0;
};

}  // namespace sim
