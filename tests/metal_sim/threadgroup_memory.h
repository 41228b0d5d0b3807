// SPDX-License-Identifier: MIT
// One threadgroup's 32 KiB: where its arrays lie, and what has been written there.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "shadow.h"

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

  /// Each returns a fault's beginning ("read of uninitialised ..."), empty if all is well.
  std::string load(const void* address, size_t bytes, const View& view, bool races);
  std::string store(const void* address, size_t bytes, const View& view, bool races);

 private:
  // Room for the limit and the gaps between arrays that catch a stray index.
  static constexpr size_t kArena = 128 * 1024, kGap = 256;

  enum State : uint8_t { kOutside = 0, kUnwritten = 1, kWritten = 2 };

  struct Array {
    const void* tag;
    size_t offset, bytes;
  };

  size_t offset(const void* address) const {
    return size_t(static_cast<const uint8_t*>(address) - data_);
  }

  std::string describe(const char* access, size_t offset, size_t bytes) const;

  uint8_t* data_;
  std::vector<uint8_t> state_;
  Shadow shadow_;
  std::vector<Array> arrays_;
  size_t top_ = 0, used_ = 0;
};

}  // namespace sim
