// SPDX-License-Identifier: MIT
// The Metal back end on a fake Mac whose kernels are noted and do nothing: what is asked of the
// GPU, and how failures end. What is computed is tested through the simulator.
#include "sdpa/metal/backend.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "sdpa/metal/runtime.h"
#include "sdpa/select.h"
#include "tests/apple_fake/executor.h"
#include "tests/apple_fake/mac.h"
#include "tests/case_data.h"

namespace sdpa::metal {
namespace {

using apple_fake::CompiledSource;
using apple_fake::FakeMac;
using apple_fake::Launch;
using cases::Case;
using cases::CaseData;

/// Offers the kernel that the last line of a source instantiates.
class NotingExecutor : public apple_fake::KernelExecutor {
 public:
  CompiledSource compile(const std::string& source) override {
    const std::string mark = "SDPA_INSTANTIATE(\"";
    const std::size_t name = source.rfind(mark) + mark.size();
    return {
        {{.name = source.substr(name, source.find('"', name) - name), .max_threads = max_threads}},
        ""};
  }

  void run(const Launch& launch) override { launches.push_back(launch); }

  std::size_t max_threads = 1024;
  std::vector<Launch> launches;
};

Case small_case() {
  return {.name = "small",
          .q_heads = 2,
          .kv_heads = 1,
          .q_len = 40,
          .kv_len = 70,
          .qk_dim = 16,
          .v_dim = 16,
          .mask = {.shape = cases::MaskShape::kFull, .dtype = DType::kFloat32}};
}

class MetalBackend : public testing::Test {
 protected:
  void TearDown() override {
    backend_.reset();
    EXPECT_EQ(mac_.runtime.finish(), std::vector<std::string>());
  }

  std::string failure() {
    try {
      backend_->forward(data_.problem, data_.forward_tensors());
    } catch (const apple::Error& error) {
      return error.what();
    }
    return "none";
  }

  NotingExecutor kernels_;
  FakeMac mac_{kernels_};
  std::unique_ptr<const Backend> backend_ = make_backend(KernelSet::kFlash);
  CaseData data_{small_case(), 1};
};

TEST_F(MetalBackend, IsAvailableAndDescribesItsPlan) {
  EXPECT_EQ(backend_->name(), "metal");
  EXPECT_EQ(backend_->device(), Device::kMetal);
  EXPECT_TRUE(backend_->availability().available);
  EXPECT_TRUE(backend_->unsupported(data_.problem, Pass::kForward).empty());
  EXPECT_NE(backend_->explain(data_.problem, Pass::kForward).find("forward_float"),
            std::string::npos);
  EXPECT_NE(backend_->explain(data_.problem, Pass::kBackward).find("grad_query"),
            std::string::npos);
}

TEST_F(MetalBackend, LaunchesItsPlans) {
  backend_->forward(data_.problem, data_.forward_tensors());
  EXPECT_EQ(kernels_.launches.size(), 2u);  // the mask's pre-pass, and the forward kernel
  backend_->backward(data_.problem, data_.backward_tensors());
  EXPECT_GE(kernels_.launches.size(), 6u);
  EXPECT_EQ(mac_.gpu.allocated_bytes, 0u);
}

// Guard words and inputs are as they were: only results come back from the GPU.
TEST_F(MetalBackend, TouchesNothingButResults) {
  backend_->backward(data_.problem, data_.backward_tensors());
  for (const cases::Tensor* tensor : {&data_.grad_query, &data_.grad_key, &data_.grad_value,
                                      &data_.grad_mask, &data_.query, &data_.key}) {
    EXPECT_TRUE(tensor->is_intact());
  }
}

TEST_F(MetalBackend, PlansAgainWhereAKernelMayHaveFewerThreads) {
  kernels_.max_threads = 64;
  backend_->forward(data_.problem, data_.forward_tensors());
  for (const Launch& launch : kernels_.launches) EXPECT_LE(launch.group.width, 64u);
}

TEST_F(MetalBackend, GivesUpWhereAKernelMayHaveTooFewThreads) {
  kernels_.max_threads = 16;
  EXPECT_EQ(failure(), "A kernel needs 32 threads a threadgroup, but the limit is 16.");
}

TEST_F(MetalBackend, ProtoRunsForwardOnly) {
  const auto proto = make_backend(KernelSet::kProto);
  EXPECT_EQ(proto->name(), "metal_proto");
  EXPECT_TRUE(proto->unsupported(data_.problem, Pass::kForward).empty());
  EXPECT_EQ(proto->unsupported(data_.problem, Pass::kBackward).at(0),
            "The naive kernel has no backward pass.");
  proto->forward(data_.problem, data_.forward_tensors());
  EXPECT_EQ(kernels_.launches.size(), 1u);
}

TEST_F(MetalBackend, RefusesWhatThisGpuCannotDo) {
  data_.problem.dtype = DType::kFloat64;
  EXPECT_FALSE(backend_->unsupported(data_.problem, Pass::kForward).empty());
}

TEST_F(MetalBackend, FailuresEndInASentence) {
  mac_.gpu.faults.compile_error = "no such type";
  EXPECT_NE(failure().find(" could not be compiled: no such type"), std::string::npos);
  mac_.gpu.faults.compile_error = "";
  mac_.gpu.faults.raises = true;
  EXPECT_EQ(failure(), "Apple's frameworks raised an exception of Objective-C.");
  mac_.gpu.faults.raises = false;
  mac_.gpu.faults.memory_bytes = 1000;
  EXPECT_NE(failure().find("The GPU gave no memory for "), std::string::npos);
  mac_.gpu.faults.memory_bytes = -1;
  mac_.gpu.faults.command_error = "fault";
  EXPECT_EQ(failure(), "The GPU failed: fault");
  mac_.gpu.faults.command_error = "";
  EXPECT_EQ(failure(), "none");  // nothing of it stays
}

TEST_F(MetalBackend, LeavesResultsAloneWhereItFails) {
  mac_.gpu.faults.command_error = "fault";
  const std::vector<double> before = data_.out.values();
  failure();
  const std::vector<double> after = data_.out.values();
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(before[i] == after[i] || (before[i] != before[i] && after[i] != after[i]));
  }
}

// Where there is no GPU for our kernels, the next back end is chosen, with the reason.

class Absent : public testing::TestWithParam<std::pair<apple_fake::System, std::string>> {};

TEST_P(Absent, GoesToTheNextBackEnd) {
  NotingExecutor kernels;
  FakeMac mac(kernels, GetParam().first);
  {
    const auto metal = make_backend(KernelSet::kFlash);
    const auto next = make_backend(KernelSet::kProto);
    const Availability state = metal->availability();
    EXPECT_FALSE(state.available);
    EXPECT_EQ(state.reason, GetParam().second);
    CaseData data(small_case(), 1);
    data.problem.device = Device::kMetal;
    const Backend* const list[] = {metal.get(), next.get()};
    const Choice choice = select(data.problem, Pass::kForward, kAuto, list, {});
    EXPECT_EQ(choice.backend, nullptr);
    ASSERT_FALSE(choice.rejected.empty());
    EXPECT_EQ(choice.rejected[0].reason, GetParam().second);
    EXPECT_FALSE(metal->explain(data.problem, Pass::kForward).empty());
    EXPECT_THROW(metal->forward(data.problem, data.forward_tensors()), apple::Error);
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
}

INSTANTIATE_TEST_SUITE_P(
    Systems, Absent,
    testing::Values(
        std::pair{apple_fake::System{.macos_major = 13},
                  "macOS 14 or newer is needed, as the kernels are written in Metal 3.1."},
        std::pair{apple_fake::System{.missing = {"Metal"}},
                  "The Metal framework could not be loaded on this system."},
        std::pair{apple_fake::System{.missing = {"CoreGraphics"}},
                  "Metal found no GPU on this system."}));

TEST(WithoutObjectiveC, SaysSo) {
  const auto metal = make_backend(KernelSet::kFlash);
  EXPECT_EQ(metal->availability().reason, "There is no Objective-C runtime on this system.");
  const CaseData data(small_case(), 1);
  EXPECT_NE(metal->explain(data.problem, Pass::kForward).find("forward_float"), std::string::npos);
}

}  // namespace
}  // namespace sdpa::metal
