// SPDX-License-Identifier: MIT
#pragma once

// Memory that will be needed soon, asked for into the second level of cache, a few rows at a time.
// All at once would wait: a core has buffers for about two dozen misses, and whatever is asked for
// beyond that takes as long as reading it. Among the multiplications of a step it is free.

#include <cstdint>

#include "sdpa/cpu/simd.h"

namespace sdpa::cpu {

class Ahead {
 public:
  struct Row {
    const char* at;
    int bytes;
    bool is_written;
  };

  SDPA_INLINE explicit Ahead(Row* rows, int capacity) : rows_(rows), capacity_(capacity) {}

  /// Forgets what was not asked for yet.
  SDPA_INLINE void clear() { count_ = next_ = 0; }

  SDPA_INLINE void add(const void* at, std::int64_t bytes, bool is_written = false) {
    if (count_ < capacity_)
      rows_[count_++] = {static_cast<const char*>(at), static_cast<int>(bytes), is_written};
  }

  /// So many calls of `ask` will follow.
  SDPA_INLINE void spread(int calls) { at_once_ = (count_ - next_ + calls - 1) / calls; }

  SDPA_INLINE void ask() {
    for (int n = 0; n < at_once_ && next_ < count_; ++n, ++next_)
      rows_[next_].is_written ? fetch<1>(rows_[next_]) : fetch<0>(rows_[next_]);
  }

  /// All of it at once.
  SDPA_INLINE void ask_all() {
    at_once_ = count_;
    ask();
    clear();
  }

 private:
  template <int Write>
  static SDPA_INLINE void fetch(const Row& row) {
    constexpr int kSecondLevel = 2, kLine = 64;
    for (int byte = 0; byte < row.bytes; byte += kLine)
      __builtin_prefetch(row.at + byte, Write, kSecondLevel);
  }

  Row* rows_;
  int capacity_;
  int count_ = 0, next_ = 0, at_once_ = 0;
};

}  // namespace sdpa::cpu
