// SPDX-License-Identifier: MIT
//
// Every back end that is available here, against the oracle, on every case of the conformance
// suite.
#include "tests/conformance.h"

#include <gtest/gtest.h>

#include <iostream>
#include <map>

#include "sdpa/attention.h"
#include "sdpa/registry.h"

namespace sdpa::cases {
namespace {

bool has_empty_extent(const Case& spec) {
  return spec.batch * spec.q_heads * spec.q_len * spec.kv_len * spec.qk_dim * spec.v_dim == 0;
}

TEST(Conformance, EveryBackendOnEveryCase) {
  std::map<std::string, int> refusals;
  int runs = 0;
  for (const Case& spec : suite("conformance")) {
    if (has_empty_extent(spec)) continue;
    SCOPED_TRACE(spec.name);
    CaseData data(spec, 7);
    const Expected oracle = expected(data);
    for (const Backend* backend : backends()) {
      if (backend->device() != Device::kCpu || !backend->availability().available) continue;
      const Outcome outcome = check(*backend, data, oracle);
      ++runs;
      for (const std::string& reason : outcome.refusals) ++refusals[reason];
      for (const std::string& sentence : outcome.failures)
        ADD_FAILURE() << backend->name() << ": " << sentence;
    }
  }
  std::cout << runs << " runs\n";
  for (const auto& [reason, count] : refusals) std::cout << "refused " << count << ": " << reason;
}

}  // namespace
}  // namespace sdpa::cases
