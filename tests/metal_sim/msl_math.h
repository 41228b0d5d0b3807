// SPDX-License-Identifier: MIT
// Mathematical functions. All are as exact as libm; fast:: and precise:: are the same.
#pragma once
#include "lane.h"
#include "msl_vector.h"

#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#define M_PI_F 3.14159265358979323846f

namespace metal {

// A function of one float; for the 16-bit types it rounds once, for vectors it goes by element.
#define MSL_FUNCTION(name, expression)                        \
  inline float name(float x) { return expression; }           \
  inline half name(half h) {                                  \
    const float x = h;                                        \
    return half(expression);                                  \
  }                                                           \
  inline bfloat name(bfloat b) {                              \
    const float x = b;                                        \
    return bfloat(expression);                                \
  }                                                           \
  template <class T, int N>                                   \
  vec<T, N> name(vec<T, N> v) {                               \
    for (T& element : v.elements) element = T(name(element)); \
    return v;                                                 \
  }

/// Counted, because exponentials are what softmax costs beside its products.
MSL_UNCHECKED inline float counted_exp(float x) {
  sim::count_exponential();
  return ::expf(x);
}

MSL_UNCHECKED inline float counted_exp2(float x) {
  sim::count_exponential();
  return ::exp2f(x);
}

#define MSL_FUNCTIONS                 \
  MSL_FUNCTION(exp, counted_exp(x))   \
  MSL_FUNCTION(exp2, counted_exp2(x)) \
  MSL_FUNCTION(log, ::logf(x))        \
  MSL_FUNCTION(log2, ::log2f(x))      \
  MSL_FUNCTION(sqrt, ::sqrtf(x))      \
  MSL_FUNCTION(rsqrt, 1 / ::sqrtf(x)) \
  MSL_FUNCTION(fabs, ::fabsf(x))      \
  MSL_FUNCTION(floor, ::floorf(x))    \
  MSL_FUNCTION(ceil, ::ceilf(x))      \
  MSL_FUNCTION(trunc, ::truncf(x))    \
  MSL_FUNCTION(rint, ::rintf(x))      \
  MSL_FUNCTION(round, ::roundf(x))    \
  MSL_FUNCTION(tanh, ::tanhf(x))      \
  MSL_FUNCTION(sin, ::sinf(x))        \
  MSL_FUNCTION(cos, ::cosf(x))
MSL_FUNCTIONS

namespace fast {
MSL_FUNCTIONS
}

namespace precise {
MSL_FUNCTIONS
}

#undef MSL_FUNCTIONS
#undef MSL_FUNCTION

// Of two numbers one of which is a NaN, max and min give the other.
template <Scalar T>
constexpr T max(T a, T b) {
  return a < b || a != a ? b : a;
}

template <Scalar T>
constexpr T min(T a, T b) {
  return b < a || a != a ? b : a;
}

#define MSL_BY_ELEMENT(name)                             \
  template <class T, int N>                              \
  constexpr vec<T, N> name(vec<T, N> a, vec<T, N> b) {   \
    for (int i = 0; i < N; i++) a[i] = name(a[i], b[i]); \
    return a;                                            \
  }
MSL_BY_ELEMENT(max)
MSL_BY_ELEMENT(min)
#undef MSL_BY_ELEMENT

template <class T>
constexpr T clamp(T value, T low, T high) {
  return min(max(value, low), high);
}

template <Scalar T>
constexpr T abs(T value) {
  return value < T(0) ? T(-value) : value;
}

template <class T>
constexpr T select(T if_false, T if_true, bool condition) {
  return condition ? if_true : if_false;
}

inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }

inline float pow(float a, float b) { return ::powf(a, b); }

inline float copysign(float a, float b) { return ::copysignf(a, b); }

inline float ldexp(float a, int exponent) { return ::ldexpf(a, exponent); }

inline float fmax(float a, float b) { return max(a, b); }

inline float fmin(float a, float b) { return min(a, b); }

inline bool isnan(float x) { return x != x; }

inline bool isinf(float x) { return ::fabsf(x) == std::numeric_limits<float>::infinity(); }

inline bool isfinite(float x) { return !isnan(x) && !isinf(x); }

namespace fast {
using metal::max, metal::min, metal::fma, metal::clamp;
}

namespace precise {
using metal::max, metal::min, metal::fma, metal::clamp;
}

// Integers.
constexpr uint mulhi(uint a, uint b) { return uint(uint64_t(a) * b >> 32); }

constexpr int mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }

constexpr uint popcount(uint a) { return uint(std::popcount(a)); }

constexpr uint clz(uint a) { return uint(std::countl_zero(a)); }

constexpr uint ctz(uint a) { return uint(std::countr_zero(a)); }

constexpr uint rotate(uint a, uint bits) { return std::rotl(a, int(bits)); }

}  // namespace metal
