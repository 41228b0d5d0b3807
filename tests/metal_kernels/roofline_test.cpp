// SPDX-License-Identifier: MIT
//
// What roofline.h says a launch does is what the simulator counts. Estimates are only as good as
// that.
#include "sdpa/metal/roofline.h"

#include <gtest/gtest.h>

#include "tests/case_data.h"
#include "tests/metal_kernels/simulated_metal.h"

namespace sdpa::metal {
namespace {

using cases::Case;

/// Runs both passes of a case and compares each launch with its prediction.
void expect_counts(const Case& spec, const DeviceInfo& device, ForwardPlan forward_plan) {
  SCOPED_TRACE(cases::describe(spec) + " on " + device.name);
  cases::CaseData data(spec, 3);
  std::vector<Launched> launches;
  const SimulatedMetal backend(device, {}, forward_plan, {.change = {}, .launched = &launches});
  backend.forward(data.problem, data.forward_tensors());
  backend.backward(data.problem, data.backward_tensors());
  for (const auto& [plan, dispatch, counters] : launches) {
    SCOPED_TRACE(dispatch.kernel);
    const Work work = work_of(data.problem, plan, dispatch);
    EXPECT_EQ(work.matrix_multiplies, static_cast<double>(counters.matrix_multiplies));
    EXPECT_EQ(work.barriers, static_cast<double>(counters.threadgroup_barriers));
    EXPECT_EQ(work.exponentials, static_cast<double>(counters.exponentials));
    if (work.matrix_multiplies > 0) {
      EXPECT_EQ(work.shuffles, static_cast<double>(counters.shuffles));
    }
  }
}

Case shape(std::int64_t q_len, std::int64_t kv_len, std::int64_t dim) {
  return {
      .q_heads = 4, .kv_heads = 2, .q_len = q_len, .kv_len = kv_len, .qk_dim = dim, .v_dim = dim};
}

std::vector<Case> problems() {
  std::vector<Case> list{shape(64, 64, 64), shape(77, 139, 40), shape(5, 200, 16),
                         shape(40, 70, 128)};
  list[1].causal = Causal::kLowerRight;
  list[2].v_dim = 300;
  for (const Case& plain : {list[0], list[1]}) {
    Case spec = plain;
    spec.causal = Causal::kUpperLeft;
    list.push_back(spec);
    spec.window = {20, -1};
    list.push_back(spec);
    spec.dtype = DType::kFloat16;
    spec.dropout = 0.2;
    list.push_back(spec);
  }
  return list;
}

TEST(Roofline, WorkIsWhatTheSimulatorCounts) {
  for (const Case& spec : problems()) {
    expect_counts(spec, {.cores = 1}, ForwardPlan::kTiles);
    expect_counts(spec, {.name = "m1", .family = 7, .cores = 1}, ForwardPlan::kTiles);
    expect_counts(spec, {.cores = 40}, ForwardPlan::kDecode);
  }
}

Problem problem_of(const Case& spec) { return cases::CaseData(spec, 1).problem; }

double forward_ms(const Problem& problem, std::string_view chip_name) {
  const Chip& chip = chip_named(chip_name);
  return estimate_ms(problem, plan_forward(problem, dense_forward(problem), device_of(chip)), chip);
}

TEST(Roofline, CausalIsNearHalfAndChipsScaleByTheirPeaks) {
  Case spec = shape(1024, 1024, 64);
  const Problem dense = problem_of(spec);
  spec.causal = Causal::kUpperLeft;
  const double ratio = forward_ms(problem_of(spec), "m4") / forward_ms(dense, "m4");
  EXPECT_GT(ratio, 0.5);
  EXPECT_LT(ratio, 0.56);
  EXPECT_NEAR(forward_ms(dense, "M3 Max") / forward_ms(dense, "m4_max"), 18.4 / 14.2, 1e-3);
}

TEST(Roofline, DecodingWaitsForMemory) {
  Case spec = shape(1, 4096, 128);
  spec.dtype = DType::kBFloat16;
  const Problem problem = problem_of(spec);
  const Plan plan = plan_forward(problem, dense_forward(problem), device_of(chip_named("m4")));
  const Work work = work_of(problem, plan, plan.dispatches[0]);
  EXPECT_TRUE(estimate(work, chip_named("m4")).waits_for_memory);
  EXPECT_NE(explain_estimate(problem, plan, chip_named("m4")).find("bound by memory"),
            std::string::npos);
}

TEST(Roofline, SaysWhichPeaksAreScaled) {
  const Problem problem = problem_of(shape(64, 64, 64));
  const auto explain = [&](std::string_view name) {
    const Chip& chip = chip_named(name);
    const Plan plan = plan_forward(problem, dense_forward(problem), device_of(chip));
    return explain_estimate(problem, plan, chip);
  };
  EXPECT_NE(explain("m5-max").find("scaled by the number of cores"), std::string::npos);
  EXPECT_EQ(explain("m5").find("scaled"), std::string::npos);
}

TEST(Roofline, AnUnknownChipIsNamedWithTheKnownOnes) {
  try {
    chip_named("m9");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()).substr(0, 40), "unknown chip 'm9'; known are m1, m1-pro,");
  }
}

}  // namespace
}  // namespace sdpa::metal
