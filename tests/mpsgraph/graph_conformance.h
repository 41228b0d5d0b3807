// SPDX-License-Identifier: MIT
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <iostream>
#include <map>
#include <string>

#include "tests/conformance.h"

namespace sdpa::cases {

/// Runs every n-th case of the conformance suite on a back end; refusals are printed.
inline void sweep(const Backend& backend, std::size_t every,
                  const std::function<void(CaseData&)>& change = {}) {
  std::map<std::string, int> refusals;
  int runs = 0;
  std::size_t n = 0;
  for (const Case& spec : suite("conformance")) {
    const bool is_empty =
        spec.batch * spec.q_heads * spec.q_len * spec.kv_len * spec.qk_dim * spec.v_dim == 0;
    if (is_empty || n++ % every != 0) continue;
    SCOPED_TRACE(spec.name);
    CaseData data(spec, 7);
    if (change) change(data);
    try {
      const Outcome outcome = check(backend, data, expected(data));
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
