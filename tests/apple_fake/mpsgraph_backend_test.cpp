// SPDX-License-Identifier: MIT
// The back end for MPSGraph on a fake Mac: every case in both passes, and how failures end.
#include "sdpa/metal/mpsgraph_backend.h"

#include <gtest/gtest.h>

#include "sdpa/select.h"
#include "tests/apple_fake/keep_kernel.h"
#include "tests/apple_fake/mac.h"
#include "tests/mpsgraph/graph_conformance.h"

namespace sdpa::metal {
namespace {

using apple_fake::FakeMac;
using apple_fake::KeepKernel;
using cases::Case;
using cases::CaseData;

constexpr GraphLimits kSmall{.block_scores = 64 * 64,
                             .operator_scores = 1 << 14,
                             .banded_rows = 24,
                             .reduction = 20,
                             .blocks = 9};

void sweep(int macos, const GraphLimits& limits, std::size_t every,
           const cases::Check& check_case = cases::check) {
  KeepKernel kernels;
  FakeMac mac(kernels, {.macos_major = macos});
  {
    const auto backend = make_graph_backend(limits);
    cases::sweep(*backend, every, check_case);
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
  EXPECT_EQ(mac.gpu.allocated_bytes, 0u);
  EXPECT_GT(kernels.launches, 0);
}

TEST(GraphBackendConformance, WrittenOut) { sweep(15, {}, 1); }

TEST(GraphBackendConformance, WithTheOperator) { sweep(15, {}, 1, cases::check_without_lse); }

TEST(GraphBackendConformance, WithTheDescriptor) { sweep(27, {}, 1, cases::check_without_lse); }

TEST(GraphBackendConformance, InSmallBlocks) { sweep(27, kSmall, 11, cases::check_without_lse); }

Case small_case() {
  return {.name = "small",
          .q_heads = 2,
          .kv_heads = 1,
          .q_len = 40,
          .kv_len = 70,
          .qk_dim = 16,
          .v_dim = 16,
          .mask = {.shape = cases::MaskShape::kFull, .dtype = DType::kFloat32},
          .dropout = 0.1};
}

class GraphBackend : public testing::Test {
 protected:
  void TearDown() override {
    backend_.reset();
    EXPECT_EQ(mac_.runtime.finish(), std::vector<std::string>());
    EXPECT_EQ(mac_.gpu.allocated_bytes, 0u);
  }

  std::string failure() {
    try {
      backend_->backward(data_.problem, data_.backward_tensors());
    } catch (const apple::Error& error) {
      return error.what();
    }
    return "none";
  }

  KeepKernel kernels_;
  FakeMac mac_{kernels_};
  std::unique_ptr<const Backend> backend_ = make_graph_backend();
  CaseData data_{small_case(), 1};
};

TEST_F(GraphBackend, IsAvailableAndDescribesItsGraphs) {
  EXPECT_EQ(backend_->name(), "mpsgraph");
  EXPECT_EQ(backend_->device(), Device::kMetal);
  EXPECT_TRUE(backend_->availability().available);
  EXPECT_NE(backend_->explain(data_.problem, Pass::kBackward).find("= matmul "), std::string::npos);
}

TEST_F(GraphBackend, CompilesOnceForEqualCalls) {
  for (int n = 0; n < 3; ++n) {
    data_.problem.dropout.seed = static_cast<std::uint64_t>(n);
    backend_->forward(data_.problem, data_.forward_tensors());
  }
  EXPECT_EQ(mac_.gpu.graphs, 1);
}

TEST_F(GraphBackend, FailuresEndInASentence) {
  mac_.gpu.faults.no_executable = true;
  EXPECT_EQ(failure(), "MPSGraph could not compile the graph.");
  mac_.gpu.faults.no_executable = false;
  mac_.gpu.faults.graph_raises = true;
  EXPECT_EQ(failure(), "Apple's frameworks raised an exception of Objective-C.");
  mac_.gpu.faults.graph_raises = false;
  mac_.gpu.faults.no_encoding = true;
  EXPECT_EQ(failure(), "MPSGraph could not encode the graph.");
  mac_.gpu.faults.no_encoding = false;
  mac_.gpu.faults.memory_bytes = 1000;
  EXPECT_NE(failure().find("The GPU gave no memory for "), std::string::npos);
  mac_.gpu.faults.memory_bytes = -1;
  mac_.gpu.faults.command_error = "Insufficient Memory";
  mac_.gpu.faults.command_error_code = apple_fake::kOutOfMemoryCode;
  EXPECT_EQ(failure(), "The GPU ran out of memory: Insufficient Memory");
  mac_.gpu.faults.command_error = "";
  EXPECT_EQ(failure(), "none");  // nothing of it stays
}

// What was compiled may be what fills the memory.
TEST_F(GraphBackend, DropsItsGraphsWhereItFails) {
  EXPECT_EQ(failure(), "none");
  EXPECT_EQ(mac_.gpu.graphs, 1);
  mac_.gpu.faults.memory_bytes = 1000;
  EXPECT_NE(failure(), "none");
  mac_.gpu.faults.memory_bytes = -1;
  EXPECT_EQ(failure(), "none");
  EXPECT_EQ(mac_.gpu.graphs, 2);
}

TEST_F(GraphBackend, TouchesNothingButResults) {
  backend_->backward(data_.problem, data_.backward_tensors());
  for (const cases::Tensor* tensor : {&data_.grad_query, &data_.grad_key, &data_.grad_value,
                                      &data_.grad_mask, &data_.query, &data_.key}) {
    EXPECT_TRUE(tensor->is_intact());
  }
}

class AbsentGraph : public testing::TestWithParam<std::pair<apple_fake::System, std::string>> {};

TEST_P(AbsentGraph, SaysWhy) {
  KeepKernel kernels;
  FakeMac mac(kernels, GetParam().first);
  {
    const auto backend = make_graph_backend();
    EXPECT_EQ(backend->availability().reason, GetParam().second);
    CaseData data(small_case(), 1);
    EXPECT_THROW(backend->forward(data.problem, data.forward_tensors()), apple::Error);
    EXPECT_FALSE(backend->explain(data.problem, Pass::kForward).empty());
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
}

INSTANTIATE_TEST_SUITE_P(
    Systems, AbsentGraph,
    testing::Values(
        std::pair{apple_fake::System{.macos_major = 14},
                  "macOS 15 or newer is needed, as MPSGraph has no scaledDotProductAttention "
                  "before."},
        std::pair{apple_fake::System{.macos_major = 13},
                  "macOS 14 or newer is needed, as the kernels are written in Metal 3.1."},
        std::pair{apple_fake::System{.missing = {"MetalPerformanceShadersGraph"}},
                  "The MetalPerformanceShadersGraph framework could not be loaded on this "
                  "system."},
        std::pair{apple_fake::System{.missing = {"Metal"}},
                  "The Metal framework could not be loaded on this system."}));

TEST(GraphWithoutObjectiveC, SaysSo) {
  EXPECT_EQ(make_graph_backend()->availability().reason,
            "There is no Objective-C runtime on this system.");
}

}  // namespace
}  // namespace sdpa::metal
