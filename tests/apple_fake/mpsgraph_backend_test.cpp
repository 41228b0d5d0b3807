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

/// The largest buffer of the GPU that is played.
constexpr std::size_t kMostBytes = 1 << 20;

class GraphBackend : public testing::Test {
 protected:
  void TearDown() override {
    backend_.reset();
    EXPECT_EQ(mac_.runtime.finish(), std::vector<std::string>());
    EXPECT_EQ(mac_.gpu.allocated_bytes, 0u);
  }

  /// The sentence in which a pass ends; "none" if it does its work.
  std::string failure(Pass pass = Pass::kBackward) {
    try {
      pass == Pass::kForward ? backend_->forward(data_.problem, data_.forward_tensors())
                             : backend_->backward(data_.problem, data_.backward_tensors());
    } catch (const apple::Error& error) {
      return error.what();
    }
    return "none";
  }

  KeepKernel kernels_;
  FakeMac mac_{kernels_, {}, {.max_buffer_bytes = kMostBytes}};
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

/// What goes wrong, and the sentence in which that ends.
struct Failure {
  std::string name;
  void (*make)(apple_fake::GpuFaults& faults);
  std::string sentence;
};

const std::vector<Failure>& failures() {
  using Faults = apple_fake::GpuFaults;
  static const std::vector<Failure> list{
      {"NoMemory", [](Faults& f) { f.memory_bytes = 1000; }, "The GPU gave no memory for "},
      {"MemoryRunsOut",
       [](Faults& f) {
         f.command_error = "Insufficient Memory";
         f.command_error_code = apple_fake::kOutOfMemoryCode;
       },
       "The GPU ran out of memory: Insufficient Memory"},
      {"NoExecutable", [](Faults& f) { f.no_executable = true; },
       "MPSGraph could not compile the graph."},
      {"Exception", [](Faults& f) { f.graph_raises = true; },
       "Apple's frameworks raised an exception of Objective-C."},
      {"NoEncoding", [](Faults& f) { f.no_encoding = true; },
       "MPSGraph could not encode the graph."},
      {"NoCommands", [](Faults& f) { f.no_command_buffer = true; },
       "The GPU gave no command buffer."}};
  return list;
}

class GraphFailure : public GraphBackend,
                     public testing::WithParamInterface<std::tuple<Failure, Pass>> {};

// A pass that fails ends in a sentence; what was compiled is dropped, as it may be what fills the
// memory; and nothing of the failure stays.
TEST_P(GraphFailure, EndsInASentenceAndDropsTheGraphs) {
  const auto& [expected, pass] = GetParam();
  EXPECT_EQ(failure(pass), "none");
  EXPECT_EQ(mac_.gpu.graphs, 1);
  if (expected.name == "NoExecutable" || expected.name == "Exception") {
    backend_ = make_graph_backend();  // with nothing compiled yet
  }
  expected.make(mac_.gpu.faults);
  EXPECT_NE(failure(pass).find(expected.sentence), std::string::npos) << failure(pass);
  mac_.gpu.faults = {};
  const int before = mac_.gpu.graphs;
  EXPECT_EQ(failure(pass), "none");
  EXPECT_EQ(mac_.gpu.graphs, before + 1);
}

INSTANTIATE_TEST_SUITE_P(InBothPasses, GraphFailure,
                         testing::Combine(testing::ValuesIn(failures()),
                                          testing::Values(Pass::kForward, Pass::kBackward)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name +
                                  (std::get<1>(info.param) == Pass::kForward ? "Forward"
                                                                             : "Backward");
                         });

TEST_F(GraphBackend, NamesABufferThatIsTooLarge) {
  Case large = small_case();
  large.q_len = 20000;
  large.mask = {};
  large.dropout = 0;
  data_ = CaseData(large, 1);
  for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
    EXPECT_EQ(failure(pass),
              "Invalid buffer size: the GPU's buffers have at most 1048576 bytes, and 2560000 are "
              "needed.");
    EXPECT_EQ(mac_.gpu.allocated_bytes, 0u);
  }
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
        std::pair{apple_fake::System{.missing = {"MetalPerformanceShaders"}},
                  "The MetalPerformanceShadersGraph framework could not be loaded on this "
                  "system."},
        std::pair{apple_fake::System{.missing = {"Metal"}},
                  "The Metal framework could not be loaded on this system."}));

/// Whether a system's graph of a causal call leaves causality to Apple's operator. It is right
/// either way.
bool uses_descriptor(const apple_fake::System& system) {
  KeepKernel kernels;
  FakeMac mac(kernels, system);
  {
    Case spec = small_case();
    spec.kv_heads = 2;
    spec.kv_len = spec.q_len;
    spec.mask = {};
    spec.dropout = 0;
    spec.causal = Causal::kUpperLeft;
    CaseData data(spec, 1);
    const cases::Expected oracle = cases::expected(data);
    const auto backend = make_graph_backend();
    EXPECT_EQ(cases::check_without_lse(*backend, data, oracle).failures,
              std::vector<std::string>());
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
  return mac.gpu.descriptors > 0;
}

// The class and the message that takes it are both looked for: no version is asked.
TEST(GraphDescriptor, IsUsedWhereTheSystemHasIt) {
  EXPECT_FALSE(uses_descriptor({.macos_major = 15}));
  EXPECT_FALSE(uses_descriptor({.macos_major = 26}));
  EXPECT_TRUE(uses_descriptor({.macos_major = 27}));
  EXPECT_FALSE(uses_descriptor({.macos_major = 27, .missing = {"MPSGraphSDPADescriptor"}}));
  EXPECT_FALSE(uses_descriptor(
      {.macos_major = 27,
       .missing = {
           "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:descriptor:name:"}}));
}

TEST(GraphWithoutObjectiveC, SaysSo) {
  EXPECT_EQ(make_graph_backend()->availability().reason,
            "There is no Objective-C runtime on this system.");
}

}  // namespace
}  // namespace sdpa::metal
