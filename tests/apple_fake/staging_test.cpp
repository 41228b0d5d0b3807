// SPDX-License-Identifier: MIT
#include "sdpa/metal/staging.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "tests/apple_fake/host_kernels.h"
#include "tests/apple_fake/mac.h"

namespace sdpa::metal {
namespace {

using Access = Staging::Access;

struct Call {
  apple::AutoreleasePool pool;
  Gpu gpu;
  Staging staging{gpu};
};

class StagingTest : public testing::Test {
 protected:
  StagingTest() { std::iota(host_.begin(), host_.end(), 0.f); }

  void TearDown() override {
    call_.reset();
    EXPECT_EQ(mac_.runtime.finish(), std::vector<std::string>());
  }

  TensorView stage(Role role, const TensorView& host, Access access) {
    return call_->staging.stage(role, host, access);
  }

  /// A view into host memory that does not begin with a page.
  TensorView view(std::array<std::int64_t, 4> shape, std::array<std::int64_t, 4> strides) {
    TensorView result = dense(host_.data() + 1, DType::kFloat32, {1, 1, 1, 1});
    std::copy(shape.begin(), shape.end(), result.shape.begin());
    std::copy(strides.begin(), strides.end(), result.strides.begin());
    return result;
  }

  static std::array<std::int64_t, 4> strides(const TensorView& view) {
    return {view.strides[0], view.strides[1], view.strides[2], view.strides[3]};
  }

  static void expect_equal(const TensorView& a, const TensorView& b) {
    for (int i = 0; i < a.shape[0] * a.shape[1] * a.shape[2] * a.shape[3]; ++i) {
      const auto c = i % a.shape[3], r = i / a.shape[3] % a.shape[2];
      const auto h = i / a.shape[3] / a.shape[2] % a.shape[1];
      const auto n = i / a.shape[3] / a.shape[2] / a.shape[1];
      EXPECT_EQ(*a.at<float>(n, h, r, c), *b.at<float>(n, h, r, c));
    }
  }

  using Strides = std::array<std::int64_t, 4>;

  std::vector<float> host_ = std::vector<float>(4096);
  apple_fake::HostKernels kernels_;
  apple_fake::FakeMac mac_{kernels_};

  std::optional<Call> call_{std::in_place};
};

TEST_F(StagingTest, PacksRowsTightly) {
  const TensorView host = view({2, 3, 4, 5}, {500, 100, 10, 1});
  const TensorView seen = stage(Role::kQuery, host, Access::kRead);
  EXPECT_EQ(strides(seen), (Strides{60, 20, 5, 1}));
  expect_equal(host, seen);
}

TEST_F(StagingTest, PutsColumnsSideBySide) {
  const TensorView host = view({1, 2, 4, 5}, {0, 100, 20, 2});
  const TensorView seen = stage(Role::kKey, host, Access::kRead);
  EXPECT_EQ(strides(seen), (Strides{40, 20, 5, 1}));
  expect_equal(host, seen);
}

TEST_F(StagingTest, KeepsRepetitions) {
  const TensorView host = view({2, 3, 4, 5}, {0, 100, 10, 1});
  const TensorView seen = stage(Role::kValue, host, Access::kRead);
  EXPECT_EQ(strides(seen), (Strides{0, 20, 5, 1}));
  EXPECT_EQ(mac_.gpu.allocated_bytes, 60 * sizeof(float));
  expect_equal(host, seen);
}

TEST_F(StagingTest, SpreadsRepeatedColumnsButForMasks) {
  const TensorView host = view({1, 1, 4, 5}, {0, 0, 1, 0});
  const TensorView query = stage(Role::kQuery, host, Access::kRead);
  EXPECT_EQ(query.strides[3], 1);
  const TensorView mask = stage(Role::kMask, host, Access::kRead);
  EXPECT_EQ(mask.strides[3], 0);
  expect_equal(host, query);
  expect_equal(host, mask);
}

TEST_F(StagingTest, ReachesElementsFarApart) {
  const TensorView host = view({1, 1, 2, 2}, {0, 0, 3000, 1});
  stage(Role::kQuery, host, Access::kRead);
  EXPECT_EQ(mac_.gpu.allocated_bytes, 4 * sizeof(float));
}

TEST_F(StagingTest, BringsResultsBackAndNothingElse) {
  const TensorView host = view({1, 2, 2, 3}, {0, 100, 10, 2});
  const TensorView seen = stage(Role::kOut, host, Access::kWrite);
  for (int i = 0; i < 12; ++i) static_cast<float*>(seen.data)[i] = -1;
  call_->staging.finish();
  for (int i = 0; i < 200; ++i) {
    const int head = (i - 1) / 100, row = (i - 1) % 100 / 10, column = (i - 1) % 10;
    const bool is_element = i > 0 && head < 2 && row < 2 && column < 6 && column % 2 == 0;
    EXPECT_EQ(host_[static_cast<std::size_t>(i)], is_element ? -1 : i) << i;
  }
}

TEST_F(StagingTest, UpdatesStartFromTheHost) {
  const TensorView host = view({2, 1, 3, 4}, {0, 0, 0, 1});  // one row for all
  const TensorView seen = stage(Role::kGradMask, host, Access::kUpdate);
  expect_equal(host, seen);
  static_cast<float*>(seen.data)[2] += 100;
  call_->staging.finish();
  EXPECT_EQ(host_[3], 103);
  EXPECT_EQ(host_[4], 4);
}

TEST_F(StagingTest, LeavesAbsentTensorsAbsent) {
  EXPECT_FALSE(stage(Role::kMask, TensorView{}, Access::kRead).is_present());
}

TEST_F(StagingTest, SharesPagesAsTheyLie) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  const std::unique_ptr<void, Free> pages(std::aligned_alloc(kPageBytes, 2 * kPageBytes));
  TensorView host = dense(pages.get(), DType::kFloat16, {1, 2, 64, 64});
  host.strides[1] = 64 * 96;
  const TensorView seen = stage(Role::kQuery, host, Access::kRead);
  EXPECT_EQ(seen.data, host.data);
  EXPECT_EQ(strides(seen), strides(host));
  EXPECT_EQ(apple::send<apple::NSUInteger>(call_->staging.buffer(Role::kQuery),
                                           apple::operator""_sel < "length">()),
            2 * kPageBytes);
  host.strides[3] = 2;
  host.shape[3] = 32;
  EXPECT_NE(stage(Role::kKey, host, Access::kRead).data, host.data);
  host.strides[2] = -64;
  EXPECT_FALSE(is_page_aligned(static_cast<std::byte*>(host.data) + 4096));
}

}  // namespace
}  // namespace sdpa::metal
