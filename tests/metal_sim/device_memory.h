// SPDX-License-Identifier: MIT
// The buffers of one launch, laid out in the simulator's own memory with wide gaps between them.
//
// The host's memory is copied in before the launch and out after it. So a stray index hits a gap,
// where host memory might have held something harmless.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "counters.h"
#include "shadow.h"
#include "sim.h"

namespace sim {

class DeviceMemory {
 public:
  DeviceMemory();
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// Copies the launch's buffers in. Those that overlap in host memory stay one.
  void place(const std::vector<Binding>& bindings, const std::vector<ArgumentInfo>& arguments);
  /// Where an argument lies on the device; for one that is not bound, where every access faults.
  void* address(int index) const;
  /// Copies what may have been written back to the host, and forgets the buffers.
  void retrieve();

  bool contains(const void* address) const { return offset(address) < kArena; }

  Verdict load(const void* address, size_t bytes, const View& view, Options::Races races,
               Counters& counters) {
    const size_t start = offset(address);
    bool is_writable = false, is_constant = false;
    for (size_t i = 0; i < bytes; i += 8) {
      const size_t part = std::min<size_t>(bytes - i, 8);
      const StateWord word = states(start + i);
      if (!word.all_have(kInside | kWritten, part)) return why_not_load(start + i, part);
      is_writable |= word.any_has(kWritable, part);
      is_constant |= word.any_has(kConstant, part);
    }
    (is_constant ? counters.constant_bytes_read : counters.device_bytes_read) += bytes;
    if (!is_writable || races == Options::Races::kIgnore) return {};
    return shadow_.load(start, bytes, view);
  }

  Verdict store(const void* address, size_t bytes, const View& view, Options::Races races,
                Counters& counters) {
    const size_t start = offset(address);
    for (size_t i = 0; i < bytes; i += 8) {
      const size_t part = std::min<size_t>(bytes - i, 8);
      const StateWord word = states(start + i);
      if (!word.all_have(kInside | kWritable, part)) return why_not_store(start + i, part);
      mark_written(start + i, part);
    }
    counters.device_bytes_written += bytes;
    if (races == Options::Races::kIgnore) return {};
    return shadow_.store(start, bytes, view);
  }

  /// Where an access went wrong, in words.
  std::string describe(Problem problem, const void* address, size_t bytes) const;

 private:
  static constexpr size_t kArena = size_t{1} << 31, kGap = 64 * 1024;

  // A byte's state is a set of these.
  enum State : uint8_t { kInside = 1, kWritten = 2, kWritable = 4, kConstant = 8 };

  struct Region {
    uint8_t* host;
    size_t bytes, offset;
    uint8_t* written;
    bool is_writable, is_constant, is_inline;
    std::vector<int> indices;  // of the arguments that lie here
    std::string name;
  };

  struct Place {
    int index;
    size_t offset;
  };

  size_t offset(const void* address) const {
    return size_t(static_cast<const uint8_t*>(address) - data_);
  }

  StateWord states(size_t offset) const {
    uint64_t word;
    memcpy(&word, state_ + offset, sizeof word);
    return StateWord(word);
  }

  // Byte by byte: neighbouring bytes may be another thread's.
  void mark_written(size_t offset, size_t bytes) {
    for (size_t i = offset; i < offset + bytes; i++) state_[i] |= kWritten;
  }

  Verdict why_not_load(size_t offset, size_t bytes) const {
    const bool is_inside = states(offset).all_have(kInside, bytes);
    return {is_inside ? Problem::kUnwritten : Problem::kOutside};
  }

  Verdict why_not_store(size_t offset, size_t bytes) const {
    const bool is_inside = states(offset).all_have(kInside, bytes);
    return {is_inside ? Problem::kReadOnly : Problem::kOutside};
  }

  void add_region(const Binding& binding, const ArgumentInfo& argument);
  bool merge(const Binding& binding, const ArgumentInfo& argument);
  void copy_in(Region& region);
  std::string place_text(size_t offset) const;
  const Region* nearest(size_t offset) const;

  uint8_t* data_;
  uint8_t* state_;
  Shadow shadow_;
  std::vector<Region> regions_;
  std::vector<Place> places_;
  size_t top_ = 0;
};

}  // namespace sim
