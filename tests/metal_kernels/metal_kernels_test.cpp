// SPDX-License-Identifier: MIT
//
// The Metal kernels in the simulator, against the oracle: every named case that the plan does not
// refuse, every load and store checked.
#include <gtest/gtest.h>

#include <iostream>
#include <map>

#include "sdpa/metal/keep_plan.h"
#include "sdpa/reference.h"
#include "tests/conformance.h"
#include "tests/metal_kernels/simulated_metal.h"

namespace sdpa::metal {
namespace {

/// A GPU, a plan for the forward pass, which of the cases it runs, and in how many orders of SIMD
/// groups and lanes.
struct Sweep {
  const char* name;
  DeviceInfo device;
  ForwardPlan forward_plan;
  std::size_t every;
  int orders = 1;
};

/// Faults of the simulator count as failures.
cases::Outcome outcome_of(const Backend& backend, cases::CaseData& data,
                          const cases::Expected& expected) {
  try {
    return cases::check(backend, data, expected);
  } catch (const std::exception& error) {
    return {.refusals = {}, .failures = {error.what()}};
  }
}

class Conformance : public testing::TestWithParam<Sweep> {};

TEST_P(Conformance, EveryCase) {
  const Sweep& sweep = GetParam();
  std::map<std::string, int> refusals;
  int count = 0;
  std::size_t n = 0;
  for (const cases::Case& spec : cases::suite("conformance")) {
    if (cases::has_empty_extent(spec) || n++ % sweep.every != 0) continue;
    SCOPED_TRACE(spec.name);
    cases::CaseData data(spec, 7);
    cases::poison_hidden_keys(data);
    const cases::Expected expected = cases::expected(data);
    for (int order = 0; order < sweep.orders; ++order) {
      const SimulatedMetal backend(sweep.device, {.seed = n + 1000 * order}, sweep.forward_plan);
      const cases::Outcome outcome = outcome_of(backend, data, expected);
      ++count;
      for (const std::string& reason : outcome.refusals) ++refusals[reason];
      for (const std::string& sentence : outcome.failures) ADD_FAILURE() << sentence;
    }
  }
  std::cout << sweep.name << ": " << count << " runs\n";
  for (const auto& [reason, count] : refusals)
    std::cout << "  refused " << count << ": " << reason << "\n";
}

INSTANTIATE_TEST_SUITE_P(
    Devices, Conformance,
    testing::Values(
        Sweep{"direct", {.family = 9, .cores = 1}, ForwardPlan::kChosen, 1, 2},
        Sweep{"staged", {.name = "m1", .family = 7, .cores = 1}, ForwardPlan::kTiles, 4, 2},
        Sweep{"split", {.cores = 40}, ForwardPlan::kDecode, 7},
        Sweep{"proto", {}, ForwardPlan::kProto, 11}),
    [](const testing::TestParamInfo<Sweep>& info) { return std::string(info.param.name); });

// Dropout as a tensor, for graphs: the bits of every other kernel.
TEST(KeepPairs, AreThoseOfTheReference) {
  for (const auto& [q_len, kv_len] : {std::pair<std::int64_t, std::int64_t>{3, 130}, {5, 7}}) {
    Problem problem{.batch = 2, .q_heads = 3, .kv_heads = 3, .q_len = q_len, .kv_len = kv_len};
    problem.dropout = {.probability = 0.4, .seed = 0x123456789abcdef, .offset = 7, .first_head = 5};
    std::vector<std::uint8_t> kept(static_cast<std::size_t>(6 * q_len * kv_len), 0xff);
    const Plan plan = plan_keep(problem);
    ASSERT_EQ(plan.scratch.at(0).bytes, static_cast<std::int64_t>(kept.size()));
    Plan own = plan;
    own.scratch.clear();
    run_plan(own, {{Role::kKeep, {kept.data(), kept.size()}}}, {});
    std::size_t n = 0;
    for (std::int64_t head = 0; head < 6; ++head)
      for (std::int64_t query = 0; query < q_len; ++query)
        for (std::int64_t key = 0; key < kv_len; ++key)
          EXPECT_EQ(kept[n++], reference::is_kept(problem.dropout, head, query, key));
  }
}

}  // namespace
}  // namespace sdpa::metal
