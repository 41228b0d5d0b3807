// SPDX-License-Identifier: MIT
// Lets Metal Shading Language sources compile as CUDA C++20 with nvcc: one SIMD group is one warp.
// Every header the program needs comes before this one: below, the address-space keywords become
// macros. MSL_CHECK asks for the checks of msl_simd_cuda.h.
#pragma once
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>

// CUDA's own macros expand to __attribute__((device)) and so on; spelt like this they survive
// `#define device`.
#undef __device__
#undef __constant__
#undef __host__
#undef __global__
#define __device__ __attribute__((__device__))
#define __constant__ __attribute__((__constant__))
#define __host__ __attribute__((__host__))
#define __global__ __attribute__((__global__))
#define MSL_HD __host__ __device__

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#define M_PI_F 3.14159265358979323846f
#define METAL_FUNC inline __device__ __attribute__((always_inline))

template <class To, class From>
MSL_HD constexpr To as_type(From v) {
  return std::bit_cast<To>(v);
}

// 16-bit floats: to float implicitly; an operation on two of them rounds to their type. half comes
// from arithmetic types implicitly, bfloat explicitly, as in Metal.
namespace msl {
MSL_HD constexpr uint16_t f2h(float f) {
  const uint32_t b = std::bit_cast<uint32_t>(f), s = b >> 16 & 0x8000;
  uint32_t a = b & 0x7FFFFFFF;
  if (a >= 0x477FF000) return s | (a > 0x7F800000 ? 0x7E00 : 0x7C00);
  if (a < 0x38800000)
    return s | uint16_t(std::bit_cast<float>(a) * 16777216.f + 8388608.f - 8388608.f);
  return s | (a + 0xFFF + (a >> 13 & 1) - 0x38000000) >> 13;
}

MSL_HD constexpr float h2f(uint16_t u) {
  const uint32_t s = uint32_t(u & 0x8000) << 16, e = u >> 10 & 31, m = u & 0x3FF;
  if (e == 0) return std::bit_cast<float>(std::bit_cast<uint32_t>(m / 16777216.f) | s);
  return std::bit_cast<float>(s | (e == 31 ? 0x7F800000 : (e + 112) << 23) | m << 13);
}

MSL_HD constexpr uint16_t f2b(float f) {
  const uint32_t b = std::bit_cast<uint32_t>(f);
  return f != f ? b >> 16 | 0x40 : (b + 0x7FFF + (b >> 16 & 1)) >> 16;
}

MSL_HD constexpr float b2f(uint16_t u) { return std::bit_cast<float>(uint32_t(u) << 16); }

MSL_HD constexpr uint16_t to_half(float f) {
#ifdef __CUDA_ARCH__
  if (!std::is_constant_evaluated()) {
    uint16_t u;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(u) : "f"(f));
    return u;
  }
#endif
  return f2h(f);
}

MSL_HD constexpr float from_half(uint16_t h) {
#ifdef __CUDA_ARCH__
  if (!std::is_constant_evaluated()) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
  }
#endif
  return h2f(h);
}
}  // namespace msl

struct half {
  uint16_t u;
  half() = default;

  template <class T>
    requires std::is_arithmetic_v<T>
  MSL_HD constexpr half(T v) : u(msl::to_half(float(v))) {}

  MSL_HD constexpr operator float() const { return msl::from_half(u); }
};

struct bfloat {
  uint16_t u;
  bfloat() = default;

  template <class T>
    requires std::is_arithmetic_v<T> || std::same_as<T, half>
  MSL_HD constexpr explicit bfloat(T v) : u(msl::f2b(float(v))) {}

  MSL_HD constexpr operator float() const { return msl::b2f(u); }
};
template <class T>
concept Small = std::same_as<T, half> || std::same_as<T, bfloat>;
#define MSL_OP(op)                                   \
  template <Small T>                                 \
  MSL_HD constexpr T operator op(T a, T b) {         \
    return T(float(a) op float(b));                  \
  }                                                  \
  template <Small T, class U>                        \
  MSL_HD constexpr T& operator op## = (T & a, U b) { \
    return a = T(a op b);                            \
  }

MSL_OP(+)
MSL_OP(-)
MSL_OP(*)
MSL_OP(/)
#undef MSL_OP

template <Small T>
MSL_HD constexpr T operator-(T a) {
  return std::bit_cast<T>(uint16_t(a.u ^ 0x8000));
}

namespace metal {
using std::bool_constant, std::integral_constant, std::true_type, std::false_type, std::is_integral,
    std::is_same, std::conditional, std::conditional_t, std::enable_if, std::enable_if_t,
    std::remove_cv_t, std::is_same_v, std::is_convertible_v, std::is_integral_v,
    std::is_floating_point, std::is_floating_point_v;
template <class T>
using remove_addrspace_t = std::remove_cv_t<T>;

template <class T>
struct numeric_limits : std::numeric_limits<T> {};

template <class T, int MaxBits, int MinBits, int InfBits>
struct Limits16 {
  MSL_HD static constexpr T max() { return std::bit_cast<T>(uint16_t(MaxBits)); }

  MSL_HD static constexpr T lowest() { return std::bit_cast<T>(uint16_t(MaxBits | 0x8000)); }

  MSL_HD static constexpr T min() { return std::bit_cast<T>(uint16_t(MinBits)); }

  MSL_HD static constexpr T infinity() { return std::bit_cast<T>(uint16_t(InfBits)); }

  MSL_HD static constexpr T quiet_NaN() { return std::bit_cast<T>(uint16_t(0x7FFF)); }
};

template <>
struct numeric_limits<half> : Limits16<half, 0x7BFF, 0x0400, 0x7C00> {};

template <>
struct numeric_limits<bfloat> : Limits16<bfloat, 0x7F7F, 0x0080, 0x7F80> {};

// ---- vectors ----
template <class T, int N>
struct vec;
template <class>
constexpr bool is_vec = false;
template <class T, int N>
constexpr bool is_vec<vec<T, N>> = true;
template <class S>
concept Scalar = !is_vec<std::remove_cvref_t<S>>;
#define MSL_VEC(N)                                                   \
  MSL_HD constexpr T& operator[](int i) { return e[i]; }             \
  MSL_HD constexpr const T& operator[](int i) const { return e[i]; } \
  vec() = default;                                                   \
  template <Scalar S>                                                \
  MSL_HD constexpr vec(S s) {                                        \
    for (int i = 0; i < N; i++) e[i] = T(s);                         \
  }                                                                  \
  template <class S>                                                 \
  MSL_HD constexpr explicit vec(vec<S, N> v) {                       \
    for (int i = 0; i < N; i++) e[i] = T(v[i]);                      \
  }

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T e[2];

    struct {
      T x, y;
    };
  };
  MSL_VEC(2)

  template <Scalar A, Scalar B>
  MSL_HD constexpr vec(A a, B b) : e{T(a), T(b)} {}
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T e[3];

    struct {
      T x, y, z;
    };

    vec<T, 2> xy;
  };
  MSL_VEC(3)

  template <Scalar A, Scalar B, Scalar C>
  MSL_HD constexpr vec(A a, B b, C c) : e{T(a), T(b), T(c)} {}
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T e[4];

    struct {
      T x, y, z, w;
    };

    struct {
      vec<T, 2> xy, zw;
    };

    vec<T, 3> xyz;
  };
  MSL_VEC(4)

  template <Scalar A, Scalar B, Scalar C, Scalar D>
  MSL_HD constexpr vec(A a, B b, C c, D d) : e{T(a), T(b), T(c), T(d)} {}

  MSL_HD constexpr vec(vec<T, 2> a, vec<T, 2> b) : e{a[0], a[1], b[0], b[1]} {}
};

#define MSL_OP(op)                                                   \
  template <class T, int N>                                          \
  MSL_HD constexpr vec<T, N> operator op(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b[i]);              \
    return a;                                                        \
  }                                                                  \
  template <class T, int N, Scalar S>                                \
  MSL_HD constexpr vec<T, N> operator op(vec<T, N> a, S b) {         \
    return a op vec<T, N>(b);                                        \
  }                                                                  \
  template <class T, int N, Scalar S>                                \
  MSL_HD constexpr vec<T, N> operator op(S a, vec<T, N> b) {         \
    return vec<T, N>(a) op b;                                        \
  }                                                                  \
  template <class T, int N, class S>                                 \
  MSL_HD constexpr vec<T, N>& operator op## = (vec<T, N> & a, S b) { \
    return a = a op b;                                               \
  }

MSL_OP(+)
MSL_OP(-)
MSL_OP(*)
MSL_OP(/)
MSL_OP(%)
MSL_OP(&)
MSL_OP(|)
MSL_OP(^)
#undef MSL_OP

template <class T, int N>
MSL_HD constexpr vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = -a[i];
  return a;
}

template <class T, int N>
MSL_HD constexpr T dot(vec<T, N> a, vec<T, N> b) {
  T s = 0;
  for (int i = 0; i < N; i++) s += a[i] * b[i];
  return s;
}

// ---- maths: templates, so that CUDA's own ::exp(float) and friends win where a call sees both
// ----
#define MSL_F1(name, expr)                            \
  template <std::same_as<float> F>                    \
  MSL_HD F name(F x) {                                \
    return expr;                                      \
  }                                                   \
  template <Small T>                                  \
  MSL_HD T name(T h) {                                \
    float x = h;                                      \
    return T(expr);                                   \
  }                                                   \
  template <class T, int N>                           \
  MSL_HD vec<T, N> name(vec<T, N> v) {                \
    for (int i = 0; i < N; i++) v[i] = T(name(v[i])); \
    return v;                                         \
  }
// clang-format off: it moves these on at every run
#define MSL_MATHS \
  MSL_F1(exp, ::expf(x)) \
  MSL_F1(exp2, ::exp2f(x)) \
  MSL_F1(log, ::logf(x)) \
  MSL_F1(log2, ::log2f(x)) \
  MSL_F1(sqrt, ::sqrtf(x)) \
  MSL_F1(rsqrt, 1 / ::sqrtf(x)) \
  MSL_F1(fabs, ::fabsf(x)) \
  MSL_F1(floor, ::floorf(x)) \
  MSL_F1(ceil, ::ceilf(x)) \
  MSL_F1(rint, ::rintf(x)) \
  MSL_F1(round, ::roundf(x)) \
  MSL_F1(tanh, ::tanhf(x)) \
  MSL_F1(sin, ::sinf(x)) \
  MSL_F1(cos, ::cosf(x))
// clang-format on
MSL_MATHS

namespace fast {
MSL_MATHS
}

namespace precise {
MSL_MATHS
}

template <class T>
MSL_HD constexpr T max(T a, T b) {
  if constexpr (is_vec<T>) {
    for (int i = 0; auto& t : a.e) {
      t = max(t, b[i++]);
    }
    return a;
  } else
    return a < b || a != a ? b : a;
}

template <class T>
MSL_HD constexpr T min(T a, T b) {
  if constexpr (is_vec<T>) {
    for (int i = 0; auto& t : a.e) {
      t = min(t, b[i++]);
    }
    return a;
  } else
    return b < a || a != a ? b : a;
}

template <class T>
MSL_HD constexpr T clamp(T v, T lo, T hi) {
  return min(max(v, lo), hi);
}

template <class T>
MSL_HD constexpr T abs(T v) {
  return v < T(0) ? T(-v) : v;
}

template <class T>
MSL_HD constexpr T select(T a, T b, bool c) {
  return c ? b : a;
}

template <class T>
MSL_HD T fma(T a, T b, T c) {
  return T(::fmaf(a, b, c));
}

template <class T>
MSL_HD T pow(T a, T b) {
  return T(::powf(a, b));
}

template <class T>
MSL_HD T fmax(T a, T b) {
  return max(a, b);
}

template <class T>
MSL_HD T fmin(T a, T b) {
  return min(a, b);
}

template <class T>
MSL_HD bool isnan(T x) {
  return x != x;
}

template <class T>
MSL_HD bool isfinite(T x) {
  return float(x) - float(x) == 0;
}

template <class T>
MSL_HD bool isinf(T x) {
  return !metal::isfinite(x) && x == x;
}
}  // namespace metal

#include "tests/metal_cuda/msl_simd_cuda.h"

// As macros: CUDA's typedefs of these names are other types.
#define float2 ::metal::vec<float, 2>
#define uint2 ::metal::vec<uint, 2>
#define uint3 ::metal::vec<uint, 3>
#define inline inline __device__  // of a source's own helper functions
#define TG_ARRAY(T, name, dims) __shared__ T name dims
#define FUNCTION_CONSTANT(T, name) __constant__ T name
#define kernel ]] __device__ [[
#define device
#define constant
#define threadgroup
#define thread
