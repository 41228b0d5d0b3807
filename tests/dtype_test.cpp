// SPDX-License-Identifier: MIT
//
// Conversions over all 65 536 patterns of 16 bits.
#include "sdpa/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace sdpa {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A half by its definition: (-1)^sign 2^(exponent - 15) 1.fraction, subnormal at exponent 0.
double half_by_definition(unsigned bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31u);
  const double fraction = bits & 1023u;
  const double sign = bits & 0x8000u ? -1 : 1;
  if (exponent == 31) return fraction == 0 ? sign * kInfinity : std::nan("");
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

template <typename Function>
void for_all_patterns(Function&& function) {
  for (unsigned bits = 0; bits < 0x10000u; ++bits) function(static_cast<std::uint16_t>(bits));
}

TEST(Float16, WidensByDefinition) {
  for_all_patterns([](std::uint16_t bits) {
    const double expected = half_by_definition(bits);
    const float actual = to_float(Float16{bits});
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << bits;
    } else {
      ASSERT_EQ(actual, expected) << bits;
      ASSERT_EQ(std::signbit(actual), (bits & 0x8000u) != 0) << bits;
    }
  });
}

TEST(Float16, RoundTrips) {
  for_all_patterns([](std::uint16_t bits) {
    const float value = to_float(Float16{bits});
    if (std::isnan(value))
      ASSERT_TRUE(std::isnan(to_float(to_float16(value)))) << bits;
    else
      ASSERT_EQ(to_float16(value).bits, bits);
  });
}

TEST(BFloat16, RoundTrips) {
  for_all_patterns([](std::uint16_t bits) {
    const float value = to_float(BFloat16{bits});
    if (std::isnan(value))
      ASSERT_TRUE(std::isnan(to_float(to_bfloat16(value)))) << bits;
    else
      ASSERT_EQ(to_bfloat16(value).bits, bits);
  });
}

/// Between a finite number and the next larger pattern of the same sign: below the middle rounds
/// down, above it up, and the middle itself to the even pattern.
template <typename Widen, typename Narrow>
void expect_nearest_even(std::uint16_t bits, std::uint16_t infinity, const Widen& widen,
                         const Narrow& narrow, double beyond_largest) {
  if ((bits & 0x7fffu) >= infinity) return;
  const auto next = static_cast<std::uint16_t>(bits + 1);
  const double low = widen(bits);
  const bool is_largest = (next & 0x7fffu) == infinity;
  const double high = is_largest ? std::copysign(beyond_largest, low) : widen(next);
  const auto middle = static_cast<float>((low + high) / 2);
  const std::uint16_t even = bits % 2 == 0 ? bits : next;
  ASSERT_EQ(narrow(middle), even) << bits;
  ASSERT_EQ(narrow(std::nextafter(middle, static_cast<float>(low))), bits);
  ASSERT_EQ(narrow(std::nextafter(middle, std::copysign(kInfinity, middle))), next);
}

TEST(Float16, RoundsToNearestEven) {
  for_all_patterns([](std::uint16_t bits) {
    expect_nearest_even(
        bits, 0x7c00, [](std::uint16_t each) { return to_float(Float16{each}); },
        [](float value) { return to_float16(value).bits; }, 0x1p16);
  });
}

TEST(BFloat16, RoundsToNearestEven) {
  for_all_patterns([](std::uint16_t bits) {
    expect_nearest_even(
        bits, 0x7f80, [](std::uint16_t each) { return to_float(BFloat16{each}); },
        [](float value) { return to_bfloat16(value).bits; }, 0x1p128);
  });
}

TEST(Float16, OverflowIsInfinity) {
  EXPECT_EQ(to_float16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(to_float16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_float16(-1e30f).bits, 0xfc00);
  EXPECT_EQ(to_float16(kInfinity).bits, 0x7c00);
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_bytes(DType::kFloat64), 8);
  EXPECT_EQ(size_bytes(DType::kFloat32), 4);
  EXPECT_EQ(size_bytes(DType::kFloat16), 2);
  EXPECT_EQ(size_bytes(DType::kBFloat16), 2);
  EXPECT_EQ(size_bytes(DType::kBool), 1);
  EXPECT_EQ(name(DType::kBFloat16), "bfloat16");
  EXPECT_EQ(name(DType::kBool), "bool");
}

}  // namespace
}  // namespace sdpa
