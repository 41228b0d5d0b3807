// SPDX-License-Identifier: MIT
// The launcher on a fake Mac, with plans made by hand and kernels in C++.
#include "sdpa/metal/launch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/apple_fake/host_kernels.h"
#include "tests/apple_fake/mac.h"

namespace sdpa::metal {
namespace {

using apple::Error;
using apple_fake::FakeMac;
using apple_fake::GpuFaults;
using apple_fake::HostKernels;
using apple_fake::Launch;
using Access = Staging::Access;

constexpr std::int64_t kRows = 5;
constexpr std::int64_t kColumns = 3;

template <class T>
T& value(const Launch& launch, std::size_t index) {
  return *reinterpret_cast<T*>(launch.buffers.at(index).data);
}

float* floats(const Launch& launch, std::size_t index) { return &value<float>(launch, index); }

/// delta = scale * query, row by row, with one threadgroup a row.
void scaled(const Launch& launch) {
  const auto& params = value<AttentionParams>(launch, 2);
  for (std::size_t row = 0; row < launch.grid.height; ++row) {
    for (long column = 0; column < params.qk_dim; ++column) {
      floats(launch, 1)[row * params.qk_dim + column] =
          value<AttentionScalars>(launch, 3).scale *
          floats(launch, 0)[static_cast<long>(row) * params.query.row + column];
    }
  }
}

/// out = delta + 1: right only if it runs after `scaled`.
void plus_one(const Launch& launch) {
  const auto& params = value<AttentionParams>(launch, 2);
  for (long row = 0; row < params.q_len; ++row) {
    for (long column = 0; column < params.qk_dim; ++column) {
      floats(launch, 1)[row * params.out.row + column] =
          floats(launch, 0)[row * params.qk_dim + column] + 1;
    }
  }
}

HostKernels test_kernels(std::size_t max_threads = 1024) {
  HostKernels kernels;
  kernels.add(
      {.name = "scaled",
       .max_threads = max_threads,
       .bindings = {{0, 4}, {1, 4}, {2, sizeof(AttentionParams)}, {3, sizeof(AttentionScalars)}}},
      scaled);
  kernels.add({.name = "plus_one", .bindings = {{0, 4}, {1, 4}, {2, sizeof(AttentionParams)}}},
              plus_one);
  return kernels;
}

Plan test_plan(const TensorView& query, const TensorView& out) {
  Plan plan;
  plan.dispatches = {
      {.kernel = "scaled",
       .specialization = "",
       .grid = {1, kRows, 1},
       .group = {32, 2, 1},
       .buffers = {Role::kQuery, Role::kDelta, Role::kParams, Role::kScalars}},
      {.kernel = "plus_one",
       .specialization = "",
       .grid = {1, 1, 1},
       .group = {32, 1, 1},
       .buffers = {Role::kDelta, Role::kOut, Role::kParams}},
  };
  plan.scratch = {{Role::kDelta, kRows * kColumns * 4}};
  plan.params.q_len = kRows;
  plan.params.qk_dim = kColumns;
  plan.params.query.row = query.strides[2];
  plan.params.out.row = out.strides[2];
  plan.scalars.scale = 0.5f;
  return plan;
}

std::string source_of(const Dispatch& dispatch) { return "kernel void " + dispatch.kernel; }

/// Query and output of one head, in memory that begins with a page or not.
struct Data {
  explicit Data(std::size_t shift) : pages(std::aligned_alloc(kPageBytes, 2 * kPageBytes)) {
    auto* first = static_cast<float*>(pages.get()) + shift;
    query = dense(first, DType::kFloat32, {1, 1, kRows, kColumns});
    query.strides[2] = kColumns + 1;
    out = dense(first + kPageBytes / 4, DType::kFloat32, {1, 1, kRows, kColumns});
    for (std::int64_t i = 0; i < kRows * (kColumns + 1); ++i) first[i] = static_cast<float>(i);
  }

  void expect_results() const {
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (std::int64_t column = 0; column < kColumns; ++column) {
        const float input = static_cast<float>(row * (kColumns + 1) + column);
        EXPECT_EQ(*out.at<float>(0, 0, row, column), input / 2 + 1);
      }
    }
  }

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  std::unique_ptr<void, Free> pages;
  TensorView query, out;
};

void run(const Gpu& gpu, Pipelines& pipelines, const Data& data) {
  Staging staging(gpu);
  const apple::AutoreleasePool pool;
  const TensorView query = staging.stage(Role::kQuery, data.query, Access::kRead);
  const TensorView out = staging.stage(Role::kOut, data.out, Access::kWrite);
  const Plan plan = test_plan(query, out);
  for (const Scratch& scratch : plan.scratch) staging.allocate(scratch);
  launch(gpu, pipelines, plan, staging);
  staging.finish();
}

class Launcher : public testing::Test {
 protected:
  void TearDown() override { EXPECT_EQ(mac_.runtime.finish(), std::vector<std::string>()); }

  /// The sentence that opening the GPU and running the plan ends with.
  std::string failure() {
    try {
      const Gpu gpu;
      Pipelines pipelines(gpu, source_of);
      run(gpu, pipelines, Data(1));
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  }

  HostKernels kernels_ = test_kernels();
  FakeMac mac_{kernels_};
};

TEST_F(Launcher, SharesPages) {
  const Gpu gpu;
  Pipelines pipelines(gpu, source_of);
  const Data data(0);
  run(gpu, pipelines, data);
  data.expect_results();
  EXPECT_EQ(mac_.gpu.shared_buffers, 2);
  EXPECT_EQ(mac_.gpu.allocated_bytes, 0u);
}

TEST_F(Launcher, PacksWhatDoesNotBeginWithAPage) {
  const Gpu gpu;
  Pipelines pipelines(gpu, source_of);
  const Data data(1);
  run(gpu, pipelines, data);
  data.expect_results();
  EXPECT_EQ(mac_.gpu.shared_buffers, 0);
}

TEST_F(Launcher, PacksWhatTheSystemDoesNotShare) {
  mac_.gpu.faults.no_sharing = true;
  const Gpu gpu;
  Pipelines pipelines(gpu, source_of);
  const Data data(0);
  run(gpu, pipelines, data);
  data.expect_results();
}

TEST_F(Launcher, CompilesEachKernelOnce) {
  const Gpu gpu;
  Pipelines pipelines(gpu, source_of);
  const Data data(1);
  for (int i = 0; i < 3; ++i) run(gpu, pipelines, data);
  EXPECT_EQ(mac_.gpu.libraries, 2);
  EXPECT_EQ(mac_.gpu.pipelines, 2);
  EXPECT_EQ(mac_.gpu.dispatches, 6);
}

TEST_F(Launcher, KeepsABoundedNumberOfKernels) {
  const Gpu gpu;
  Pipelines pipelines(gpu, source_of, {.entries = 1});
  const Data data(1);
  for (int i = 0; i < 3; ++i) run(gpu, pipelines, data);
  data.expect_results();
  EXPECT_EQ(pipelines.size(), 1u);
  EXPECT_EQ(mac_.gpu.libraries, 6);
}

TEST_F(Launcher, ServesManyThreads) {
  const Gpu gpu;
  Pipelines pipelines(gpu, source_of);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) {
        const Data data(static_cast<std::size_t>(i) % 2);
        run(gpu, pipelines, data);
        data.expect_results();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(mac_.gpu.libraries, 2);
}

TEST_F(Launcher, DescribesTheDevice) {
  mac_.gpu.model = {.name = "Apple M1 Max", .apple_family = 7, .max_threadgroup_bytes = 1 << 14};
  const Gpu gpu;
  EXPECT_EQ(gpu.info().name, "m1 max");
  EXPECT_EQ(gpu.info().family, 7);
  EXPECT_EQ(gpu.info().cores, 40);
  EXPECT_EQ(gpu.info().threadgroup_bytes, 1 << 14);
  EXPECT_EQ(cores_of("m4"), 10);
  EXPECT_EQ(cores_of("m2 ultra"), 80);
  EXPECT_EQ(cores_of("m4 pro"), 20);
}

TEST(OlderSystem, CompilesWithoutMathModes) {
  HostKernels kernels = test_kernels();
  FakeMac mac(kernels, {.macos_major = 14});
  {
    const Gpu gpu;
    Pipelines pipelines(gpu, source_of);
    const Data data(0);
    run(gpu, pipelines, data);
    data.expect_results();
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
}

// A kernel that needs many registers may have fewer threads than the plan asks for.
TEST(LauncherLimits, TellsHowManyThreadsAKernelMayHave) {
  HostKernels kernels = test_kernels(48);
  FakeMac mac(kernels);
  {
    const Gpu gpu;
    Pipelines pipelines(gpu, source_of);
    Plan plan = test_plan(Data(0).query, Data(0).out);
    EXPECT_EQ(exceeded_threads(pipelines, plan), 48);
    plan.dispatches[0].group = {32, 1, 1};
    EXPECT_EQ(exceeded_threads(pipelines, plan), std::nullopt);
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
}

// Each failure ends in its own sentence, and leaves nothing behind.

TEST_F(Launcher, FailsWithoutADevice) {
  mac_.gpu.faults.no_device = true;
  EXPECT_EQ(failure(), "Metal found no GPU on this system.");
}

TEST_F(Launcher, FailsOnAnOldGpu) {
  mac_.gpu.model = {.name = "Apple Paravirtual device", .apple_family = 5};
  EXPECT_EQ(failure(),
            "The GPU Apple Paravirtual device has no SIMD-group matrices; an M1 or newer is "
            "needed.");
}

TEST_F(Launcher, FailsWithoutAQueue) {
  mac_.gpu.faults.no_queue = true;
  EXPECT_EQ(failure(), "The GPU gave no command queue.");
}

TEST_F(Launcher, FailsWithoutCommandBuffers) {
  mac_.gpu.faults.no_command_buffer = true;
  EXPECT_EQ(failure(), "The GPU gave no command buffer.");
}

TEST_F(Launcher, FailsWithoutEncoders) {
  mac_.gpu.faults.no_encoder = true;
  EXPECT_EQ(failure(), "The GPU gave no command encoder.");
}

TEST_F(Launcher, FailsWhereAKernelDoesNotCompile) {
  mac_.gpu.faults.compile_error = "program_source:7: error: unknown type name 'bfloat'";
  EXPECT_EQ(failure(),
            "The Metal kernel scaled could not be compiled: program_source:7: error: unknown type "
            "name 'bfloat'");
}

TEST_F(Launcher, FailsWhereALibraryLacksItsKernel) {
  try {
    const Gpu gpu;
    Pipelines pipelines(gpu, [](const Dispatch&) { return std::string("kernel void other"); });
    run(gpu, pipelines, Data(1));
    FAIL() << "a kernel was found";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "The Metal kernel scaled could not be compiled: its library has no function of "
                 "that name");
  }
}

TEST_F(Launcher, FailsWhereAPipelineIsRefused) {
  mac_.gpu.faults.pipeline_error = "too many registers";
  EXPECT_EQ(failure(), "The Metal kernel scaled could not be compiled: too many registers");
}

TEST_F(Launcher, FailsWhereMemoryRunsOut) {
  mac_.gpu.faults.memory_bytes = 100;
  EXPECT_EQ(failure(), "The GPU gave no memory for 60 bytes.");
}

TEST_F(Launcher, FailsWhereTheGpuRunsOutOfMemory) {
  mac_.gpu.faults.command_error = "Insufficient Memory (00000008)";
  mac_.gpu.faults.command_error_code = apple_fake::kOutOfMemoryCode;
  EXPECT_EQ(failure(), "The GPU ran out of memory: Insufficient Memory (00000008)");
}

TEST_F(Launcher, FailsWhereACommandBufferFails) {
  mac_.gpu.faults.command_error = "Caused GPU Timeout Error (00000002)";
  EXPECT_EQ(failure(), "The GPU failed: Caused GPU Timeout Error (00000002)");
}

std::string failure_on(apple_fake::System system) {
  HostKernels kernels = test_kernels();
  FakeMac mac(kernels, std::move(system));
  std::string sentence = "none";
  try {
    const Gpu gpu;
  } catch (const Error& error) {
    sentence = error.what();
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
  return sentence;
}

TEST(Systems, EachAbsenceHasItsSentence) {
  EXPECT_EQ(failure_on({.macos_major = 13}),
            "macOS 14 or newer is needed, as the kernels are written in Metal 3.1.");
  EXPECT_EQ(failure_on({.missing = {"Metal"}}),
            "The Metal framework could not be loaded on this system.");
  EXPECT_EQ(failure_on({.missing = {"MTLCreateSystemDefaultDevice"}}),
            "This system has no function MTLCreateSystemDefaultDevice.");
  EXPECT_EQ(failure_on({.missing = {"NSProcessInfo"}}), "This system has no class NSProcessInfo.");
  EXPECT_EQ(failure_on({.macos_major = 14}), "none");
  EXPECT_EQ(failure_on({.macos_major = 26}), "none");
}

TEST(Systems, WithoutObjectiveCThereIsNoGpu) {
  try {
    const Gpu gpu;
    FAIL() << "a GPU was found";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "There is no Objective-C runtime on this system.");
  }
}

}  // namespace
}  // namespace sdpa::metal
