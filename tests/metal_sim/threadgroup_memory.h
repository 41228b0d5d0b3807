// SPDX-License-Identifier: MIT
// One threadgroup's 32 KiB: where its arrays lie, and what has been written there.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "shadow.h"
#include "sim.h"

namespace sim {

class ThreadgroupMemory {
 public:
  ThreadgroupMemory();
  ~ThreadgroupMemory();
  ThreadgroupMemory(const ThreadgroupMemory&) = delete;
  ThreadgroupMemory& operator=(const ThreadgroupMemory&) = delete;

  /// Forgets all arrays, for another kernel.
  void clear();
  /// Fills the arrays with NaN and marks them unwritten, for another threadgroup.
  void poison();
  /// The array of a declaration; null if the limit of 32 KiB is passed.
  void* array(const void* tag, size_t bytes, size_t align);

  bool contains(const void* address) const { return offset(address) < kArena; }

  size_t used_bytes() const { return used_; }

  Verdict load(const void* address, size_t bytes, const View& view, Options::Races races) {
    const size_t start = offset(address);
    for (size_t i = 0; i < bytes; i += 8) {
      const size_t part = std::min<size_t>(bytes - i, 8);
      if (!states(start + i).all_have(kInside | kWritten, part)) return why_not(start + i, part);
    }
    if (races == Options::Races::kIgnore) return {};
    return shadow_.load(start, bytes, view);
  }

  Verdict store(const void* address, size_t bytes, const View& view, Options::Races races) {
    const size_t start = offset(address);
    for (size_t i = 0; i < bytes; i += 8) {
      const size_t part = std::min<size_t>(bytes - i, 8);
      const StateWord word = states(start + i);
      if (!word.all_have(kInside, part)) return {Problem::kOutside};
      const uint64_t marked = word.with(kWritten, part);
      memcpy(&state_[start + i], &marked, sizeof marked);
    }
    if (races == Options::Races::kIgnore) return {};
    return shadow_.store(start, bytes, view);
  }

  /// Where an access went wrong, in words.
  std::string describe(Problem problem, const void* address, size_t bytes) const;

 private:
  // Room for the limit and the gaps between arrays that catch a stray index.
  static constexpr size_t kArena = 128 * 1024, kGap = 256;

  // A byte's state is a set of these.
  enum State : uint8_t { kInside = 1, kWritten = 2 };

  struct Array {
    const void* tag;
    size_t offset, bytes;
  };

  size_t offset(const void* address) const {
    return size_t(static_cast<const uint8_t*>(address) - data_);
  }

  StateWord states(size_t offset) const {
    uint64_t word;
    memcpy(&word, &state_[offset], sizeof word);
    return StateWord(word);
  }

  Verdict why_not(size_t offset, size_t bytes) const {
    const bool is_inside = states(offset).all_have(kInside, bytes);
    return {is_inside ? Problem::kUnwritten : Problem::kOutside};
  }

  uint8_t* data_;
  std::vector<uint8_t> state_;
  Shadow shadow_;
  std::vector<Array> arrays_;
  size_t top_ = 0, used_ = 0;
};

}  // namespace sim
