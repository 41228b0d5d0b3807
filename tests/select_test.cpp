// SPDX-License-Identifier: MIT
//
// The choice among back ends that exist only here.
#include "sdpa/select.h"

#include <gtest/gtest.h>

#include <limits>

#include "sdpa/registry.h"

namespace sdpa {
namespace {

/// A back end that computes nothing and objects to what it is told to.
class Candidate final : public Backend {
 public:
  explicit Candidate(std::string name) : name_(std::move(name)) {}

  std::string_view name() const override { return name_; }

  Device device() const override { return device_; }

  Availability availability() const override {
    return {.available = missing_.empty(), .reason = missing_};
  }

  std::vector<std::string> unsupported(const Problem&, Pass) const override { return objections_; }

  std::string explain(const Problem&, Pass) const override { return ""; }

  void forward(const Problem&, const ForwardTensors&) const override {}

  void backward(const Problem&, const BackwardTensors&) const override {}

  std::string name_, missing_;
  Device device_ = Device::kCpu;
  std::vector<std::string> objections_;
};

constexpr double kNever = std::numeric_limits<double>::infinity();

class Select : public testing::Test {
 protected:
  Choice choose(std::string_view requested, Pass pass = Pass::kForward) const {
    const std::vector<const Backend*> list{&first, &second, &proto};
    return select(problem, pass, requested, list, thresholds);
  }

  Candidate first{"first"}, second{"second"}, proto{"metal_proto"};
  Thresholds thresholds;
  Problem problem{
      .batch = 1, .q_heads = 2, .kv_heads = 2, .q_len = 10, .kv_len = 10, .qk_dim = 8, .v_dim = 8};
};

TEST_F(Select, AutoTakesTheFirst) {
  const Choice choice = choose("auto");
  EXPECT_EQ(choice.backend, &first);
  EXPECT_EQ(choice.why, "It is the first in order of preference that can run this problem.");
  EXPECT_TRUE(choice.rejected.empty());
}

TEST_F(Select, AnExplicitNameComesFirst) {
  const Choice choice = choose("second");
  EXPECT_EQ(choice.backend, &second);
  EXPECT_EQ(choice.why, "It was asked for by name.");
}

TEST_F(Select, ARefusalGoesDownTheListWithItsReasons) {
  second.objections_ = {"It cannot do softcap.", "It cannot do sinks."};
  const Choice choice = choose("second");
  EXPECT_EQ(choice.backend, &first);
  ASSERT_EQ(choice.rejected.size(), 1u);
  EXPECT_EQ(choice.rejected[0].backend, "second");
  EXPECT_EQ(choice.rejected[0].reason, "It cannot do softcap. It cannot do sinks.");
}

TEST_F(Select, AnAbsentOneIsPassedOverWithItsReason) {
  first.missing_ = "Metal.framework was not found.";
  const Choice choice = choose("auto");
  EXPECT_EQ(choice.backend, &second);
  ASSERT_EQ(choice.rejected.size(), 1u);
  EXPECT_EQ(choice.rejected[0].reason, "Metal.framework was not found.");
}

TEST_F(Select, ABackendOfAnotherDeviceIsPassedOver) {
  first.device_ = Device::kMetal;
  second.device_ = Device::kCuda;
  const Choice choice = choose("auto");
  EXPECT_EQ(choice.backend, nullptr);
  EXPECT_EQ(choice.why, "No back end can run this problem.");
  ASSERT_EQ(choice.rejected.size(), 2u);
  EXPECT_EQ(choice.rejected[0].reason, "It runs on the Apple GPU; the tensors are on the CPU.");
  EXPECT_EQ(choice.rejected[1].reason, "It runs on an NVIDIA GPU; the tensors are on the CPU.");
}

TEST_F(Select, TheExperimentIsChosenByNameOnly) {
  first.missing_ = second.missing_ = "It is not here.";
  EXPECT_EQ(choose("auto").backend, nullptr);
  EXPECT_EQ(choose("metal_proto").backend, &proto);
}

TEST_F(Select, StockRunsNothing) {
  const Choice choice = choose("stock");
  EXPECT_EQ(choice.backend, nullptr);
  EXPECT_EQ(choice.why, "It was asked for by name.");
}

TEST_F(Select, LittleWorkGoesToStockUnderAutoOnly) {
  Ladder& ladder = thresholds.ladders[0][0][0];
  ladder = {{"first", work(problem) + 1}};
  EXPECT_EQ(choose("auto").backend, nullptr);
  EXPECT_EQ(choose("auto").why,
            "Calibration found the framework's own function faster below this amount of work.");
  EXPECT_EQ(choose("first").backend, &first);
  EXPECT_EQ(choose("auto", Pass::kBackward).backend, &first) << "each pass has its own threshold";
  ladder = {{"first", work(problem)}};
  EXPECT_EQ(choose("auto").backend, &first);
  EXPECT_EQ(choose("auto").why, "Calibration found it the fastest for this amount of work.");
  ladder = {{"first", kNever}};
  EXPECT_EQ(choose("auto").backend, nullptr);
}

TEST_F(Select, TheFirstStepThatAProblemHasTheWorkForWins) {
  Ladder& ladder = thresholds.ladders[0][0][0];
  ladder = {{"second", work(problem)}, {"first", 0}};
  EXPECT_EQ(choose("auto").backend, &second) << "the ladder's order, not that of preference";
  ladder[0].minimum_work *= 2;
  const Choice choice = choose("auto");
  EXPECT_EQ(choice.backend, &first);
  ASSERT_EQ(choice.rejected.size(), 1u);
  EXPECT_EQ(choice.rejected[0].backend, "second");
  EXPECT_EQ(choice.rejected[0].reason,
            "Calibration found others faster below a work of 3.2e+03; this problem's is 1.6e+03.");
  EXPECT_EQ(choose("auto", Pass::kBackward).backend, &first) << "nothing measured: by preference";
}

TEST_F(Select, AnotherDeviceIsSaidWithALadderToo) {
  first.device_ = Device::kMetal;
  thresholds.ladders[0][0][0] = {{"second", 0}};
  for (const Pass pass : {Pass::kForward, Pass::kBackward}) {  // with the ladder, and without
    Choice choice = choose("auto", pass);
    reject_other_devices(problem, std::vector<const Backend*>{&first, &second}, choice);
    EXPECT_EQ(choice.backend, &second);
    ASSERT_EQ(choice.rejected.size(), 1u);
    EXPECT_EQ(choice.rejected[0].reason, "It runs on the Apple GPU; the tensors are on the CPU.");
  }
}

TEST_F(Select, AStepThatRefusesIsPassedOver) {
  Ladder& ladder = thresholds.ladders[0][0][0];
  ladder = {{"first", 0}, {"second", 0}};
  first.objections_ = {"It cannot do this."};
  EXPECT_EQ(choose("auto").backend, &second);
  ladder = {{"first", 0}, {"second", kNever}};
  EXPECT_EQ(choose("auto").backend, nullptr) << "what could run it is slower than the framework's";
  ladder = {{"first", 0}, {"absent", kNever}};
  EXPECT_EQ(choose("auto").backend, &second) << "it was not measured, so preference counts";
  ladder = {{"second", kNever}, {"first", 0}, {"second", 0}};
  const Choice choice = choose("auto");
  EXPECT_EQ(choice.backend, &second) << "the last step holds nothing back";
  EXPECT_EQ(choice.rejected.size(), 2u) << "one sentence each";
}

TEST_F(Select, EachClassOfDimensionsHasItsOwnThreshold) {
  thresholds.ladders[0][0][1] = {{"first", kNever}};
  problem.qk_dim = kDimBounds[0];
  EXPECT_EQ(choose("auto").backend, &first);
  problem.qk_dim = kDimBounds[0] + 1;
  EXPECT_EQ(choose("auto").backend, nullptr);
}

TEST_F(Select, WhatTheFrameworkLacksIsNotSentToItForBeingSmall) {
  thresholds.ladders[0][0][0] = {{"first", kNever}};
  const Problem plain = problem;
  for (const auto& change : std::vector<void (*)(Problem&)>{
           [](Problem& p) { p.softcap = 1; }, [](Problem& p) { p.has_sinks = true; },
           [](Problem& p) { p.dropout.probability = 0.1; }, [](Problem& p) { p.window.left = 3; },
           [](Problem& p) { p.window.right = 3; },
           [](Problem& p) { p.causal = Causal::kLowerRight; }}) {
    problem = plain;
    change(problem);
    EXPECT_EQ(choose("auto").backend, &first);
  }
}

TEST_F(Select, WorkCountsVisiblePairs) {
  EXPECT_DOUBLE_EQ(work(problem), 2 * 100 * 8);
  problem.causal = Causal::kUpperLeft;
  EXPECT_DOUBLE_EQ(work(problem), 2 * 55 * 8);
  problem.window.left = 0;
  EXPECT_DOUBLE_EQ(work(problem), 2 * 10 * 8);
}

TEST(Registry, FindsByName) {
  ASSERT_NE(find_backend("cpu"), nullptr);
  EXPECT_EQ(find_backend("cpu")->name(), "cpu");
  EXPECT_EQ(find_backend("nothing"), nullptr);
  for (const Backend* backend : backends()) EXPECT_EQ(find_backend(backend->name()), backend);
}

}  // namespace
}  // namespace sdpa
