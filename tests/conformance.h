// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "sdpa/backend.h"
#include "tests/case_data.h"

// How a back end is compared with the oracle.

namespace sdpa::cases {

/// The seed of the inputs with which every case is compared.
constexpr std::uint64_t kInputSeed = 7;

/// A way to run a case: an available back end, forced to one of its instruction sets.
struct Engine {
  const Backend* backend;
  std::string_view instruction_set;  ///< empty where the back end has none

  /// "cpu avx2"
  std::string label() const;
};

/// Every back end of the registry that is available here, once for each instruction set that the
/// processor has; where the variable MPS_SDPA_ISA names one, only with that.
std::vector<Engine> engines();

/// Forces an instruction set, or that of an engine, while it lives.
class Forced {
 public:
  explicit Forced(std::string_view instruction_set);

  explicit Forced(const Engine& engine) : Forced(engine.instruction_set) {}

  Forced(const Forced&) = delete;
  Forced& operator=(const Forced&) = delete;
  ~Forced();
};

/// |actual - expected| <= absolute + relative * |expected|.
struct Tolerance {
  double absolute, relative;
};

/// The accuracy contract: the only place that says how close is close enough.
Tolerance tolerance(const Problem& problem, Pass pass);

/// NaN is close to NaN, and an infinity to itself.
bool is_close(double actual, double expected, const Tolerance& allowed);

/// What came of running a case on a back end.
struct Outcome {
  std::vector<std::string> refusals;  ///< the back end's reasons, with the pass in front
  std::vector<std::string> failures;  ///< one sentence each: which output, where, what was expected
};

/// Runs both passes of a case and compares every output and every guard word. The case must not
/// have an extent of zero: the door keeps those from back ends.
Outcome check(const Backend& backend, CaseData& data, const Expected& expected);

/// The same comparison for results that were computed otherwise.
std::vector<std::string> forward_failures(const CaseData& data, const Expected& expected);
std::vector<std::string> backward_failures(const CaseData& data, const Expected& expected);

}  // namespace sdpa::cases
