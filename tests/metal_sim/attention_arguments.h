// SPDX-License-Identifier: MIT
// A case of the common table as arguments of somebody's attention kernel.
#pragma once
#include <gtest/gtest.h>

#include <string>

#include "run_kernel.h"
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

  /// Checks the output and, if the kernel has one, the log-sum-exp.
  enum class Lse { kWritten, kAbsent };

  void check(const Result& result, Lse lse) {
    for (const std::string& fault : result.faults) ADD_FAILURE() << fault;
    if (lse == Lse::kAbsent) data.lse.assign(expected.lse);
    for (const std::string& failure : sdpa::cases::forward_failures(data, expected))
      ADD_FAILURE() << sdpa::cases::describe(data.spec) << ": " << failure;
  }

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

inline int divide_up(int64_t a, int64_t b) { return int((a + b - 1) / b); }

}  // namespace sim
