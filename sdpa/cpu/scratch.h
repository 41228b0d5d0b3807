// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

namespace sdpa::cpu {

/// At least `bytes` of memory of the calling thread, aligned to 64 bytes, uninitialized. It stays
/// valid until the same thread asks again, and is kept between calls: a small problem would spend
/// more time in the allocator than in the mathematics.
char* thread_scratch(std::size_t bytes);

/// Floats that all tasks of one call share, aligned to 64 bytes, uninitialized.
class CallMemory {
 public:
  explicit CallMemory(std::int64_t count);
  ~CallMemory();
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;

  float* floats() const { return floats_; }

 private:
  float* floats_ = nullptr;
};

/// The same, but up to 64 MB stay with the process for the next call: with fresh pages the backward
/// pass of 8 heads of 2048 x 64 takes 213 ms instead of 205 (one Zen 4 core). Calls at the same
/// time get memory of their own.
class KeptMemory {
 public:
  explicit KeptMemory(std::int64_t count);
  ~KeptMemory();
  KeptMemory(const KeptMemory&) = delete;
  KeptMemory& operator=(const KeptMemory&) = delete;

  float* floats() const { return floats_; }

 private:
  float* floats_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Hands out aligned pieces of one buffer; without a buffer it only counts.
struct Arena {
  char* base = nullptr;
  std::size_t used = 0;

  template <typename T>
  T* take(std::int64_t count) {
    T* piece = reinterpret_cast<T*>(base + used);
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    used += (bytes + 63) / 64 * 64;
    return base == nullptr ? nullptr : piece;
  }
};

}  // namespace sdpa::cpu
