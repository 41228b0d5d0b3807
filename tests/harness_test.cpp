// SPDX-License-Identifier: MIT
//
// The comparison itself: each mistake that a kernel can make must be seen.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "sdpa/element.h"
#include "sdpa/reference.h"
#include "tests/conformance.h"

namespace sdpa::cases {
namespace {

/// The oracle with one mistake.
class Mistaken final : public Backend {
 public:
  std::function<void(Problem&)> misread = [](Problem&) {};
  std::function<void(const ForwardTensors&)> spoil_forward = [](const ForwardTensors&) {};
  std::function<void(const BackwardTensors&)> spoil_backward = [](const BackwardTensors&) {};

  std::string_view name() const override { return "mistaken"; }

  Device device() const override { return Device::kCpu; }

  Availability availability() const override { return {}; }

  std::vector<std::string> unsupported(const Problem&, Pass) const override { return {}; }

  std::string explain(const Problem&, Pass) const override { return ""; }

  void forward(const Problem& problem, const ForwardTensors& t) const override {
    reference::forward(misread_copy(problem), t);
    spoil_forward(t);
  }

  void backward(const Problem& problem, const BackwardTensors& t) const override {
    reference::backward(misread_copy(problem), t);
    spoil_backward(t);
  }

 private:
  Problem misread_copy(Problem problem) const {
    misread(problem);
    return problem;
  }
};

Case full_featured(DType dtype) {
  return {.dtype = dtype,
          .batch = 2,
          .q_heads = 4,
          .kv_heads = 2,
          .q_len = 17,
          .kv_len = 33,
          .qk_dim = 16,
          .v_dim = 8,
          .mask = {MaskShape::kPerHead, DType::kFloat32, MaskPattern::kRandom},
          .causal = Causal::kLowerRight,
          .window = {12, 12},
          .softcap = 3,
          .sinks = true,
          .dropout = 0.25,
          .layout = Layout::kSliced,
          .grad_lse = true};
}

std::vector<std::string> failures_of(const Mistaken& backend, DType dtype = DType::kFloat32) {
  CaseData data(full_featured(dtype), 5);
  return check(backend, data, expected(data)).failures;
}

TEST(Harness, AcceptsTheOracle) {
  for (DType dtype : {DType::kFloat64, DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    EXPECT_EQ(failures_of(Mistaken(), dtype), std::vector<std::string>()) << name(dtype);
}

class Misread : public testing::TestWithParam<std::function<void(Problem&)>> {};

TEST_P(Misread, EveryFeatureCounts) {
  Mistaken backend;
  backend.misread = GetParam();
  for (DType dtype : {DType::kFloat32, DType::kBFloat16})
    EXPECT_FALSE(failures_of(backend, dtype).empty()) << name(dtype);
}

INSTANTIATE_TEST_SUITE_P(Features, Misread,
                         testing::Values([](Problem& p) { p.scale *= 1.3; },
                                         [](Problem& p) { p.causal = Causal::kUpperLeft; },
                                         [](Problem& p) { p.causal = Causal::kNone; },
                                         [](Problem& p) { ++p.window.left; },
                                         [](Problem& p) { p.softcap = 0; },
                                         [](Problem& p) { p.mask = MaskKind::kNone; },
                                         [](Problem& p) { p.has_sinks = false; },
                                         [](Problem& p) { p.dropout.probability = 0; },
                                         [](Problem& p) { ++p.dropout.first_head; },
                                         [](Problem& p) { ++p.dropout.offset; },
                                         [](Problem& p) { --p.kv_len; }));

TEST(Harness, SeesAnOutputThatIsNotWritten) {
  Mistaken backend;
  const float untouched = std::bit_cast<float>(0xfdfdfdfdu);
  backend.spoil_forward = [&](const ForwardTensors& t) { write(t.out, 1, 3, 16, 7, untouched); };
  const std::vector<std::string> failures = failures_of(backend);
  ASSERT_EQ(failures.size(), 1u);
  EXPECT_NE(failures[0].find("out[1,3,16,7] is -4.2"), std::string::npos) << failures[0];
  EXPECT_NE(failures[0].find("; 1 of 1088 elements are wrong"), std::string::npos) << failures[0];
}

TEST(Harness, SeesNaN) {
  Mistaken backend;
  backend.spoil_backward = [](const BackwardTensors& t) { write(t.grad_key, 0, 0, 0, 0, NAN); };
  EXPECT_EQ(failures_of(backend).size(), 1u);
}

TEST(Harness, SeesAWriteBesideARow) {
  Mistaken backend;
  backend.spoil_forward = [](const ForwardTensors& t) { write(t.out, 0, 0, 0, 8, 1); };
  EXPECT_EQ(failures_of(backend), std::vector<std::string>{"out was written outside its elements"});
}

TEST(Harness, SeesPaddingCopiedIntoPadding) {
  Mistaken backend;
  backend.spoil_backward = [](const BackwardTensors& t) {
    write(t.grad_query, 0, 0, 0, 16, std::nan(""));
  };
  EXPECT_EQ(failures_of(backend),
            std::vector<std::string>{"grad_query was written outside its elements"});
}

TEST(HarnessDeathTest, ReadingPastAnInputFaults) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const CaseData data({.q_len = 3, .kv_len = 4, .qk_dim = 5, .v_dim = 5}, 1);
  const TensorView key = data.key.view();
  volatile double sum = 0;
  EXPECT_DEATH(sum = sum + read(key, 0, 0, 3, 5), "");
}

TEST(Harness, InputsLieAmidNaN) {
  const CaseData data(full_featured(DType::kFloat16), 1);
  EXPECT_TRUE(std::isnan(read(data.query.view(), 0, 0, 0, 16)));
  EXPECT_TRUE(std::isnan(read(data.key.view(), 0, 0, 0, -1)));
}

TEST(Harness, HugeStridesOverflow32Bits) {
  Case spec{.q_heads = 2, .kv_heads = 2, .q_len = 3, .kv_len = 3};
  spec.layout = Layout::kHugeRows;
  EXPECT_GT(CaseData(spec, 1).key.view().strides[2], std::int64_t{1} << 31);
  spec.layout = Layout::kHugeHeads;
  EXPECT_GT(CaseData(spec, 1).out.view().strides[1], std::int64_t{1} << 31);
}

TEST(Harness, TheSameSeedGivesTheSameTensors) {
  const Case spec = full_featured(DType::kFloat32);
  EXPECT_EQ(CaseData(spec, 4).key.values(), CaseData(spec, 4).key.values());
  EXPECT_NE(CaseData(spec, 4).key.values(), CaseData(spec, 5).key.values());
}

TEST(Harness, TolerancesAreTheContract) {
  const auto of = [](DType dtype, Pass pass, double scale = 0.25) {
    return tolerance({.dtype = dtype, .qk_dim = 16, .scale = scale}, pass);
  };
  EXPECT_EQ(of(DType::kFloat32, Pass::kForward).absolute, 5e-6);
  EXPECT_EQ(of(DType::kFloat32, Pass::kForward).relative, 5e-5);
  EXPECT_EQ(of(DType::kFloat16, Pass::kForward).absolute, 5e-3);
  EXPECT_EQ(of(DType::kBFloat16, Pass::kForward).relative, 5e-2);
  EXPECT_EQ(of(DType::kBFloat16, Pass::kBackward).absolute, 1e-2);
  EXPECT_EQ(of(DType::kFloat32, Pass::kBackward, 0.1).absolute, 1e-5);
  EXPECT_DOUBLE_EQ(of(DType::kFloat32, Pass::kBackward, -0.75).absolute, 3e-5)
      << "three times the scale";
  EXPECT_EQ(of(DType::kFloat32, Pass::kForward, -0.75).absolute, 5e-6);
}

}  // namespace
}  // namespace sdpa::cases
