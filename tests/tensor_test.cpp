// SPDX-License-Identifier: MIT
#include "sdpa/tensor.h"

#include <gtest/gtest.h>

#include <array>

#include "sdpa/element.h"

namespace sdpa {
namespace {

TEST(TensorView, DenseIsRowMajor) {
  float memory[1];
  const TensorView view = dense(memory, DType::kFloat32, {2, 3, 4});
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.extent(-1), 4);
  EXPECT_EQ(view.stride(-1), 1);
  EXPECT_EQ(view.stride(-2), 4);
  EXPECT_EQ(view.stride(-3), 12);
  EXPECT_EQ(view.element_count(), 24);
  EXPECT_EQ(shape_string(view), "[2, 3, 4]");
}

TEST(TensorView, MissingDimensionsAreOne) {
  const TensorView view = dense(nullptr, DType::kFloat32, {2, 3});
  EXPECT_EQ(view.extent(-3), 1);
  EXPECT_EQ(view.stride(-3), 0);
}

TEST(TensorView, AbsentIsEmpty) {
  const TensorView absent;
  EXPECT_FALSE(absent.is_present());
  EXPECT_EQ(absent.element_count(), 0);
  EXPECT_EQ(shape_string(absent), "[]");
}

TEST(TensorView, RankGrowsAtTheFront) {
  const TensorView view = with_rank(dense(nullptr, DType::kFloat32, {2, 3}), 4);
  EXPECT_EQ(shape_string(view), "[1, 1, 2, 3]");
  EXPECT_EQ(view.strides[0], 0);
  EXPECT_EQ(view.strides[2], 3);
}

TEST(TensorView, ExpandingSetsAStrideOfZero) {
  const TensorView view = expanded(dense(nullptr, DType::kFloat32, {1, 3}), 0, 5);
  EXPECT_EQ(shape_string(view), "[5, 3]");
  EXPECT_EQ(view.strides[0], 0);
  EXPECT_EQ(view.strides[1], 1);
  EXPECT_EQ(expanded(view, 1, 3).strides[1], 1) << "a dimension that fits stays as it is";
}

TEST(Element, ReadsWhatWasWrittenThroughStrides) {
  for (DType dtype :
       {DType::kFloat64, DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kBool}) {
    alignas(8) std::array<unsigned char, 8 * 48> memory{};
    TensorView view = dense(memory.data(), dtype, {1, 2, 3, 4});
    view.strides = {48, 24, 8, 2};
    write(view, 0, 1, 2, 3, 1);
    EXPECT_EQ(read(view, 0, 1, 2, 3), 1) << name(dtype);
    EXPECT_EQ(read(view, 0, 1, 2, 2), 0) << name(dtype);
    const auto offset = static_cast<std::size_t>((24 + 2 * 8 + 3 * 2) * size_bytes(dtype));
    const auto size = static_cast<std::size_t>(size_bytes(dtype));
    for (std::size_t n = 0; n < memory.size(); ++n)
      if (n < offset || n >= offset + size) {
        EXPECT_EQ(memory[n], 0) << name(dtype) << " byte " << n;
      }
  }
}

TEST(Element, RoundsOnceToTheDType) {
  std::array<std::uint16_t, 1> memory{};
  const TensorView half = dense(memory.data(), DType::kFloat16, {1, 1, 1, 1});
  write(half, 0, 0, 0, 0, 1.0 / 3);
  EXPECT_EQ(memory[0], to_float16(1.0f / 3).bits);
}

}  // namespace
}  // namespace sdpa
