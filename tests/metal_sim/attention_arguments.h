// SPDX-License-Identifier: MIT
// A case of the common table as arguments of somebody's attention kernel.
#pragma once
#include <string>
#include <vector>

#include "bindings.h"
#include "tests/case_data.h"
#include "tests/conformance.h"

namespace sim {

/// The memory from a view's first element to its last.
inline Binding view_buffer(int index, const sdpa::TensorView& view) {
  int64_t last = 0;
  for (size_t dim = 0; dim < 4; dim++) last += (view.shape[dim] - 1) * view.strides[dim];
  return {Binding::Kind::kBuffer, index, view.data,
          size_t((last + 1) * sdpa::size_bytes(view.dtype))};
}

/// A case with its inputs and what the oracle expects of them.
struct Attention {
  explicit Attention(const sdpa::cases::Case& spec)
      : data(spec, /*seed=*/17),
        expected(sdpa::cases::expected(data)),
        tensors(data.forward_tensors()),
        problem(data.problem) {}

  /// Whether the kernel writes the log-sum-exp as the library does.
  enum class Lse { kWritten, kAbsent };

  /// What is wrong after a launch: its faults, the output and, if the kernel has one, the
  /// log-sum-exp.
  std::vector<std::string> failures(const Result& result, Lse lse) {
    std::vector<std::string> list = result.faults;
    if (lse == Lse::kAbsent) data.lse.assign(expected.lse);
    for (const std::string& failure : sdpa::cases::forward_failures(data, expected))
      list.push_back(sdpa::cases::describe(data.spec) + ": " + failure);
    return list;
  }

  /// For kernels that write the log-sum-exp only if asked.
  bool wants_lse = true;
  sdpa::cases::CaseData data;
  sdpa::cases::Expected expected;
  sdpa::ForwardTensors tensors;
  sdpa::Problem problem;
};

/// "float", "half" or "bfloat".
inline std::string msl_name(sdpa::DType dtype) {
  if (dtype == sdpa::DType::kFloat16) return "half";
  return dtype == sdpa::DType::kBFloat16 ? "bfloat" : "float";
}

/// Counts a second launch with the first, and its faults.
inline void add(Result& result, const Result& next) {
  result.counters += next.counters;
  result.faults.insert(result.faults.end(), next.faults.begin(), next.faults.end());
}

inline int divide_up(int64_t a, int64_t b) { return int((a + b - 1) / b); }

}  // namespace sim
