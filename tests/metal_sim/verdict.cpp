// SPDX-License-Identifier: MIT
#include "verdict.h"

#include "shadow.h"

namespace sim {
namespace {

const char* name(Problem problem) {
  switch (problem) {
    case Problem::kNone:
      return "no problem";
    case Problem::kOutside:
      return "access outside any buffer";
    case Problem::kUnwritten:
      return "read of uninitialised memory";
    case Problem::kReadOnly:
      return "store to memory that the kernel declares const";
    case Problem::kReadAfterWrite:
      return "race: read after write without a barrier";
    case Problem::kWriteAfterWrite:
      return "race: write after write without a barrier";
    case Problem::kWriteAfterRead:
      return "race: write after read without a barrier";
  }
  return "";
}

}  // namespace

std::string problem_text(Problem problem, size_t bytes) {
  return std::string(name(problem)) + " (" + std::to_string(bytes) + " bytes)";
}

std::string past_text(const Verdict& verdict, Stamp me) {
  if (!verdict.past) return {};
  if (serial_of(verdict.past) != serial_of(me)) return ", against another threadgroup";
  return ", against thread " + std::to_string(lane_of(verdict.past));
}

}  // namespace sim
