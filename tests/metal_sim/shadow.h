// SPDX-License-Identifier: MIT
// Race detection: who accessed which bytes last, and whether a barrier lies between.
//
// Simulated execution is a sequence; each fenced barrier advances a clock. An access is stamped
// with the threadgroup, the lane and the time. Two accesses to one byte, at least one of them a
// write, are a race unless the same lane made both, both are atomic, or the later lane has passed a
// fenced barrier that both took part in since. Threadgroups of one launch are never ordered.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "verdict.h"

namespace sim {

/// serial (30 bits) | time (21 bits) | atomic (1 bit) | byte mask (2 bits) | lane (10 bits). Zero:
/// no access. The serial number counts all threadgroups ever run, so that old stamps need no
/// clearing.
constexpr int kLaneBits = 10, kMaskBits = 2, kAtomicBits = 1, kTimeBits = 21;
constexpr int kTimeShift = kLaneBits + kMaskBits + kAtomicBits;
constexpr Stamp kLaneMask = (Stamp{1} << kLaneBits) - 1;
constexpr Stamp kByteMask = ((Stamp{1} << kMaskBits) - 1) << kLaneBits;
constexpr Stamp kAtomicMask = Stamp{1} << (kLaneBits + kMaskBits);
constexpr Stamp kTimeMask = (Stamp{1} << kTimeBits) - 1;

constexpr Stamp make_stamp(uint64_t serial, uint64_t time, unsigned lane) {
  return serial << (kTimeBits + kTimeShift) | time << kTimeShift | lane;
}

constexpr unsigned lane_of(Stamp stamp) { return unsigned(stamp & kLaneMask); }

constexpr uint64_t time_of(Stamp stamp) { return stamp >> kTimeShift & kTimeMask; }

constexpr uint64_t serial_of(Stamp stamp) { return stamp >> (kTimeBits + kTimeShift); }

/// What the running lane knows to be ordered before it, in one memory space.
struct View {
  Stamp me = 0;                 // with an empty byte mask
  uint64_t first_serial = 0;    // of this launch: what is older is ordered
  uint64_t group_time = 0;      // accesses of this threadgroup before this time are ordered
  uint64_t simdgroup_time = 0;  // those of this SIMD group before this one, too

  /// The same for an atomic operation, which races with no other.
  View as_atomic() const {
    View view = *this;
    view.me |= kAtomicMask;
    return view;
  }

  bool is_ordered(Stamp past) const {
    if (serial_of(past) != serial_of(me)) return serial_of(past) < first_serial;
    if (lane_of(past) == lane_of(me) || time_of(past) < group_time) return true;
    return lane_of(past) / 32 == lane_of(me) / 32 && time_of(past) < simdgroup_time;
  }
};

/// Stamps for a stretch of memory. A cell covers two bytes: the last writer and two readers.
///
/// Two readers are enough to convict any later writer: the second slot holds the reader furthest
/// from the first (another threadgroup, else another SIMD group, else another lane), so at least
/// one of them is not the writer and not of its group, if there was any such reader. Single bytes
/// of a cell used by different lanes can hide each other's stamps; they never raise a false alarm.
/// Of atomic operations between two barriers only the first writer is known, and no reader.
/// Stamps of device memory are shared between threads without locks: two accesses in the same
/// nanosecond may miss each other.
class Shadow {
 public:
  /// Reserves, without committing, cells for this many bytes.
  explicit Shadow(size_t bytes);
  ~Shadow();
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  Verdict load(size_t offset, size_t bytes, const View& view) {
    return each_cell(offset, bytes, view,
                     [&view](Cell& cell, Stamp me) { return load_cell(cell, me, view); });
  }

  Verdict store(size_t offset, size_t bytes, const View& view) {
    return each_cell(offset, bytes, view,
                     [&view](Cell& cell, Stamp me) { return store_cell(cell, me, view); });
  }

 private:
  using Slot = std::atomic<Stamp>;

  struct Cell {
    Slot writer, reader, far_reader;
  };

  template <class Visit>
  Verdict each_cell(size_t offset, size_t bytes, const View& view, Visit visit) {
    if ((offset | bytes) % 2) return each_odd_cell(offset, bytes, view, visit);
    const Stamp me = view.me | kByteMask;
    for (Cell *cell = cells_ + offset / 2, *end = cell + bytes / 2; cell != end; cell++) {
      const Verdict verdict = visit(*cell, me);
      if (!verdict.is_fine()) return verdict;
    }
    return {};
  }

  // The same where single bytes are concerned.
  template <class Visit>
  Verdict each_odd_cell(size_t offset, size_t bytes, const View& view, Visit visit) {
    for (size_t byte = offset; byte < offset + bytes; byte++) {
      const Verdict verdict = visit(cells_[byte / 2], view.me | Stamp{1} << (kLaneBits + byte % 2));
      if (!verdict.is_fine()) return verdict;
    }
    return {};
  }

  static bool conflicts(Stamp past, Stamp me, const View& view) {
    return (past & me & kByteMask) && !(past & me & kAtomicMask) && !view.is_ordered(past);
  }

  static Verdict load_cell(Cell& cell, Stamp me, const View& view) {
    const Stamp reader = cell.reader.load(std::memory_order_relaxed);
    if (reader != me && !(me & kAtomicMask)) note_reader(cell, reader, me, view);
    const Stamp writer = cell.writer.load(std::memory_order_relaxed);
    if (conflicts(writer, me, view)) return {Problem::kReadAfterWrite, writer};
    return {};
  }

  static Verdict store_cell(Cell& cell, Stamp me, const View& view) {
    const Stamp writer = cell.writer.load(std::memory_order_relaxed);
    if (writer != me) {
      if (conflicts(writer, me, view)) return {Problem::kWriteAfterWrite, writer};
      if (!remains(writer, me, view))
        cell.writer.store(same_moment(writer, me) ? writer | me : me, std::memory_order_relaxed);
    }
    for (const Slot* slot : {&cell.reader, &cell.far_reader}) {
      const Stamp reader = slot->load(std::memory_order_relaxed);
      if (conflicts(reader, me, view)) return {Problem::kWriteAfterRead, reader};
    }
    return {};
  }

  // Of unordered atomic operations the first stays: who adds and then reads plainly would else meet
  // only himself.
  static bool remains(Stamp writer, Stamp me, const View& view) {
    return (writer & me & kAtomicMask) && (writer & me & kByteMask) == (me & kByteMask) &&
           !view.is_ordered(writer);
  }

  static bool same_moment(Stamp a, Stamp b) { return (a & ~kByteMask) == (b & ~kByteMask); }

  // How far apart two accesses are: the same lane, SIMD group, threadgroup, or none of these.
  static int distance(Stamp a, Stamp b) {
    if (serial_of(a) != serial_of(b)) return 3;
    if (lane_of(a) / 32 != lane_of(b) / 32) return 2;
    return lane_of(a) != lane_of(b);
  }

  static void note_reader(Cell& cell, Stamp reader, Stamp me, const View& view) {
    if (view.is_ordered(reader)) {
      if (same_moment(reader, me)) me |= reader;
      cell.reader.store(me, std::memory_order_relaxed);
      return;
    }
    const Stamp far = cell.far_reader.load(std::memory_order_relaxed);
    if (view.is_ordered(far) || distance(reader, me) > distance(reader, far))
      cell.far_reader.store(me, std::memory_order_relaxed);
  }

  Cell* cells_ = nullptr;
  size_t mapped_bytes_ = 0;
};

}  // namespace sim
