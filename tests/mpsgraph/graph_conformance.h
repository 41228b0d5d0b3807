// SPDX-License-Identifier: MIT
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <iostream>
#include <map>
#include <string>

#include "tests/conformance.h"

namespace sdpa::cases {

using Check = std::function<Outcome(const Backend&, CaseData&, const Expected&)>;

/// The forward pass alone, and without a log-sum-exp: then Apple's operator serves where it can say
/// what is asked. With one the softmax is written out; the backward pass is the same for both.
inline Outcome check_without_lse(const Backend& backend, CaseData& data, const Expected& expected) {
  data.lse = {};
  Outcome outcome{.refusals = backend.unsupported(data.problem, Pass::kForward), .failures = {}};
  if (!outcome.refusals.empty()) return outcome;
  backend.forward(data.problem, data.forward_tensors());
  outcome.failures = forward_failures(data, expected);
  return outcome;
}

/// Runs every n-th case of the conformance suite on a back end; refusals are printed.
inline void sweep(const Backend& backend, std::size_t every, const Check& check_case = check) {
  std::map<std::string, int> refusals;
  int runs = 0;
  std::size_t n = 0;
  for (const Case& spec : suite("conformance")) {
    if (has_empty_extent(spec) || n++ % every != 0) continue;
    SCOPED_TRACE(spec.name);
    CaseData data(spec, 7);
    try {
      const Outcome outcome = check_case(backend, data, expected(data));
      ++runs;
      for (const std::string& reason : outcome.refusals) ++refusals[reason];
      for (const std::string& sentence : outcome.failures) ADD_FAILURE() << sentence;
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
  }
  std::cout << runs << " runs\n";
  for (const auto& [reason, count] : refusals)
    std::cout << "refused " << count << " times: " << reason << "\n";
}

}  // namespace sdpa::cases
