// SPDX-License-Identifier: MIT
// MSL's scalar types, their limits, and the type traits that metal_stdlib has.
#pragma once
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

/// Code of the shim that touches the simulator's own data must not be checked as kernel code is.
#define MSL_UNCHECKED __attribute__((no_sanitize("thread")))

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;

#ifdef MSL_SPACES
typedef __bf16 bfloat;  // a class in an address space cannot be copied out of it in C++
#else
/// As in Metal: converts to float by itself, from float only when asked; its own operators round.
struct bfloat {
  uint16_t bits;

  bfloat() = default;

  template <class T>
    requires(std::is_arithmetic_v<T> || std::is_same_v<T, half>)
  constexpr explicit bfloat(T value) : bits(round(float(value))) {}

  constexpr operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }

  static constexpr uint16_t round(float value) {
    const uint32_t wide = std::bit_cast<uint32_t>(value);
    if (value != value) return uint16_t(wide >> 16 | 0x40);  // stays a NaN
    return uint16_t((wide + 0x7FFF + (wide >> 16 & 1)) >> 16);
  }
};

#define MSL_OPERATOR(op)                                                                    \
  constexpr bfloat operator op(bfloat a, bfloat b) { return bfloat(float(a) op float(b)); } \
  constexpr bfloat& operator op## = (bfloat & a, bfloat b) { return a = a op b; }
MSL_OPERATOR(+)
MSL_OPERATOR(-)
MSL_OPERATOR(*)
MSL_OPERATOR(/)
#undef MSL_OPERATOR

constexpr bfloat operator-(bfloat a) { return std::bit_cast<bfloat>(uint16_t(a.bits ^ 0x8000)); }
#endif

template <class To, class From>
constexpr To as_type(From value) {
  return std::bit_cast<To>(value);
}

namespace metal {

using std::bool_constant, std::conditional, std::conditional_t, std::enable_if, std::enable_if_t,
    std::false_type, std::integral_constant, std::is_convertible_v, std::is_floating_point,
    std::is_floating_point_v, std::is_integral, std::is_integral_v, std::is_same, std::is_same_v,
    std::remove_cv_t, std::remove_reference_t, std::true_type;

template <class T>
using remove_addrspace_t = std::remove_cv_t<T>;

template <class T, size_t N>
using array = std::array<T, N>;

template <class T>
struct numeric_limits : std::numeric_limits<T> {};

/// Limits of a 16-bit type from the bit patterns of its largest, smallest normal and infinite
/// value.
template <class T, uint16_t kMax, uint16_t kMin, uint16_t kInfinity>
struct Limits16 {
  static constexpr T max() { return std::bit_cast<T>(kMax); }

  static constexpr T lowest() { return std::bit_cast<T>(uint16_t(kMax | 0x8000)); }

  static constexpr T min() { return std::bit_cast<T>(kMin); }

  static constexpr T infinity() { return std::bit_cast<T>(kInfinity); }

  static constexpr T quiet_NaN() { return std::bit_cast<T>(uint16_t{0x7FFF}); }
};

template <>
struct numeric_limits<half> : Limits16<half, 0x7BFF, 0x0400, 0x7C00> {};

template <>
struct numeric_limits<bfloat> : Limits16<bfloat, 0x7F7F, 0x0080, 0x7F80> {};

}  // namespace metal
