// SPDX-License-Identifier: MIT
// What the checks of one memory access find.
#pragma once
#include <cstdint>
#include <string>

namespace sim {

/// Who accessed a place and when; see shadow.h.
using Stamp = uint64_t;

enum class Problem : uint64_t {
  kNone,
  kOutside,
  kUnwritten,
  kReadOnly,
  kReadAfterWrite,
  kWriteAfterWrite,
  kWriteAfterRead,
};

/// Two registers, because every access returns one.
struct Verdict {
  Problem problem = Problem::kNone;
  Stamp past = 0;  // the other access of a race

  bool is_fine() const { return problem == Problem::kNone; }
};

/// "race: read after write without a barrier (4 bytes)", ...
std::string problem_text(Problem problem, size_t bytes);

/// ", against thread 5"; empty unless the problem is a race.
std::string past_text(const Verdict& verdict, Stamp me);

/// Eight states of one byte each, with what a check wants of every one.
class StateWord {
 public:
  explicit StateWord(uint64_t states) : states_(states) {}

  /// Do the first `bytes` (at most 8) states all have these bits?
  bool all_have(uint8_t bits, size_t bytes) const {
    const uint64_t wanted = kEach * bits & mask(bytes);
    return (states_ & wanted) == wanted;
  }

  bool any_has(uint8_t bits, size_t bytes) const { return states_ & kEach * bits & mask(bytes); }

  /// The states with these bits added to the first `bytes`.
  uint64_t with(uint8_t bits, size_t bytes) const { return states_ | (kEach * bits & mask(bytes)); }

 private:
  static constexpr uint64_t kEach = 0x0101010101010101;

  static uint64_t mask(size_t bytes) { return ~uint64_t{0} >> (64 - 8 * bytes); }

  uint64_t states_;
};

}  // namespace sim
