// SPDX-License-Identifier: MIT
// vec<T, N> for N = 2, 3, 4, packed vectors, and the operators on them. Swizzles that name leading
// or trailing elements are members, as in Metal; for all others there is swizzle<1, 0>(), which
// rewrite.py writes instead of .yx.
#pragma once
#include "msl_scalar.h"

namespace metal {

template <class T, int N>
struct vec;

template <class>
constexpr bool is_vector = false;
template <class T, int N>
constexpr bool is_vector<vec<T, N>> = true;

template <class S>
concept Scalar = !is_vector<std::remove_cvref_t<S>>;

// What all sizes share: indexing, and conversion from a scalar and from another element type.
#define MSL_VECTOR_BODY(N)                                           \
  vec() = default;                                                   \
  constexpr T& operator[](int i) { return elements[i]; }             \
  constexpr const T& operator[](int i) const { return elements[i]; } \
  template <Scalar S>                                                \
  constexpr vec(S scalar) {                                          \
    for (int i = 0; i < N; i++) elements[i] = T(scalar);             \
  }                                                                  \
  template <class S>                                                 \
  constexpr explicit vec(vec<S, N> other) {                          \
    for (int i = 0; i < N; i++) elements[i] = T(other[i]);           \
  }                                                                  \
  template <int... kPlaces>                                          \
  constexpr const vec<T, sizeof...(kPlaces)> swizzle() const {       \
    return {elements[kPlaces]...};                                   \
  }

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T elements[2];

    struct {
      T x, y;
    };
  };
  MSL_VECTOR_BODY(2)

  template <Scalar A, Scalar B>
  constexpr vec(A a, B b) : elements{T(a), T(b)} {}
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T elements[3];

    struct {
      T x, y, z;
    };

    vec<T, 2> xy;
  };
  MSL_VECTOR_BODY(3)

  template <Scalar A, Scalar B, Scalar C>
  constexpr vec(A a, B b, C c) : elements{T(a), T(b), T(c)} {}

  template <Scalar C>
  constexpr vec(vec<T, 2> a, C c) : elements{a[0], a[1], T(c)} {}
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T elements[4];

    struct {
      T x, y, z, w;
    };

    struct {
      vec<T, 2> xy, zw;
    };

    vec<T, 3> xyz;
  };
  MSL_VECTOR_BODY(4)

  template <Scalar A, Scalar B, Scalar C, Scalar D>
  constexpr vec(A a, B b, C c, D d) : elements{T(a), T(b), T(c), T(d)} {}

  constexpr vec(vec<T, 2> a, vec<T, 2> b) : elements{a[0], a[1], b[0], b[1]} {}
};

#undef MSL_VECTOR_BODY

#define MSL_OPERATOR(op)                                      \
  template <class T, int N>                                   \
  constexpr vec<T, N> operator op(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b[i]);       \
    return a;                                                 \
  }                                                           \
  template <class T, int N, Scalar S>                         \
  constexpr vec<T, N> operator op(vec<T, N> a, S b) {         \
    return a op vec<T, N>(b);                                 \
  }                                                           \
  template <class T, int N, Scalar S>                         \
  constexpr vec<T, N> operator op(S a, vec<T, N> b) {         \
    return vec<T, N>(a) op b;                                 \
  }                                                           \
  template <class T, int N, class S>                          \
  constexpr vec<T, N>& operator op## = (vec<T, N> & a, S b) { \
    return a = a op b;                                        \
  }
MSL_OPERATOR(+)
MSL_OPERATOR(-)
MSL_OPERATOR(*)
MSL_OPERATOR(/)
MSL_OPERATOR(%)
MSL_OPERATOR(&)
MSL_OPERATOR(|)
MSL_OPERATOR(^)
MSL_OPERATOR(<<)
MSL_OPERATOR(>>)
#undef MSL_OPERATOR

#define MSL_COMPARISON(op)                                       \
  template <class T, int N>                                      \
  constexpr vec<bool, N> operator op(vec<T, N> a, vec<T, N> b) { \
    vec<bool, N> result;                                         \
    for (int i = 0; i < N; i++) result[i] = a[i] op b[i];        \
    return result;                                               \
  }                                                              \
  template <class T, int N, Scalar S>                            \
  constexpr vec<bool, N> operator op(vec<T, N> a, S b) {         \
    return a op vec<T, N>(b);                                    \
  }
MSL_COMPARISON(==)
MSL_COMPARISON(!=)
MSL_COMPARISON(<)
MSL_COMPARISON(<=)
MSL_COMPARISON(>)
MSL_COMPARISON(>=)
#undef MSL_COMPARISON

template <class T, int N>
constexpr vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = T(-a[i]);
  return a;
}

template <class T, int N>
constexpr T dot(vec<T, N> a, vec<T, N> b) {
  T sum = T(0);
  for (int i = 0; i < N; i++) sum += a[i] * b[i];
  return sum;
}

template <int N>
constexpr bool all(vec<bool, N> v) {
  for (int i = 0; i < N; i++)
    if (!v[i]) return false;
  return true;
}

template <int N>
constexpr bool any(vec<bool, N> v) {
  for (int i = 0; i < N; i++)
    if (v[i]) return true;
  return false;
}

/// Three or four elements without padding and with the element's alignment.
template <class T, int N>
struct packed_vec {
  T elements[N];

  packed_vec() = default;

  constexpr packed_vec(vec<T, N> v) {
    for (int i = 0; i < N; i++) elements[i] = v[i];
  }

  constexpr operator vec<T, N>() const {
    vec<T, N> v;
    for (int i = 0; i < N; i++) v[i] = elements[i];
    return v;
  }

  constexpr T& operator[](int i) { return elements[i]; }

  constexpr const T& operator[](int i) const { return elements[i]; }
};

}  // namespace metal

#define MSL_NAMES(T)                             \
  typedef metal::vec<T, 2> T##2;                 \
  typedef metal::vec<T, 3> T##3;                 \
  typedef metal::vec<T, 4> T##4;                 \
  typedef metal::packed_vec<T, 2> packed_##T##2; \
  typedef metal::packed_vec<T, 3> packed_##T##3; \
  typedef metal::packed_vec<T, 4> packed_##T##4;
MSL_NAMES(float)
MSL_NAMES(half)
MSL_NAMES(bfloat)
MSL_NAMES(int)
MSL_NAMES(uint)
MSL_NAMES(short)
MSL_NAMES(ushort)
MSL_NAMES(long)
MSL_NAMES(ulong)
MSL_NAMES(bool)
MSL_NAMES(char)
MSL_NAMES(uchar)
#undef MSL_NAMES
