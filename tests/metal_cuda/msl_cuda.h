// SPDX-License-Identifier: MIT
// Lets Metal Shading Language sources compile as CUDA C++20 with nvcc: one SIMD group is one warp.
// Every header the program needs comes before this one: below, the address-space keywords become
// macros. MSL_CHECK: threadgroup memory starts as NaNs, a SIMD operation or a barrier that some
// lanes do not reach is an error, a barrier whose flags name no memory orders none (racecheck sees
// none), and SIMD groups wait at random.
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
MSL_OP(-) MSL_OP(*) MSL_OP(/)
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
MSL_OP(-) MSL_OP(*) MSL_OP(/) MSL_OP(%) MSL_OP(&) MSL_OP(|) MSL_OP(^)
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
#define MSL_MATHS                                                                        \
  MSL_F1(exp, ::expf(x))                                                                 \
  MSL_F1(exp2, ::exp2f(x)) MSL_F1(log, ::logf(x)) MSL_F1(log2, ::log2f(x))               \
      MSL_F1(sqrt, ::sqrtf(x)) MSL_F1(rsqrt, 1 / ::sqrtf(x)) MSL_F1(fabs, ::fabsf(x))    \
          MSL_F1(floor, ::floorf(x)) MSL_F1(ceil, ::ceilf(x)) MSL_F1(rint, ::rintf(x))   \
              MSL_F1(round, ::roundf(x)) MSL_F1(tanh, ::tanhf(x)) MSL_F1(sin, ::sinf(x)) \
                  MSL_F1(cos, ::cosf(x))
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

// ---- SIMD-group and threadgroup collectives: all 32 lanes must take part ----
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };

MSL_HD constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(int(a) | int(b));
}

#define MSL_DEV inline __device__ __attribute__((always_inline))
#ifdef MSL_CHECK
constexpr bool checked = true;
#else
constexpr bool checked = false;
#endif
MSL_DEV void all_lanes(const char* what) {
  if (checked && __activemask() != ~0u) {
    printf("%s: only lanes %08x are there\n", what, __activemask());
    __trap();
  }
}

MSL_DEV void threadgroup_barrier(mem_flags f) {
  if (!checked) return __syncthreads();
  if (f != mem_flags::mem_none && __syncthreads_count(1) != blockDim.x * blockDim.y * blockDim.z)
    printf("threadgroup_barrier: some lanes have left\n"), __trap();
  __nanosleep((uint(clock()) + threadIdx.y * 977 + threadIdx.z * 331) * 0x9E3779B1u >>
              22);  // SIMD groups in another order
}

MSL_DEV void simdgroup_barrier(mem_flags f) {
  if (!checked || f != mem_flags::mem_none) __syncwarp();
}

MSL_DEV int simd_me() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31;
}

template <class T, class Shfl>
MSL_DEV T simd_words(T v, Shfl f) {  // word by word: T may be a vector or a 16-bit float
  all_lanes("simd shuffle or reduction");
  uint32_t w[(sizeof(T) + 3) / 4] = {};
  memcpy(w, &v, sizeof v);
  for (auto& x : w) x = f(x);
  memcpy(&v, w, sizeof v);
  return v;
}

template <class T>
MSL_DEV T simd_shuffle(T v, ushort l) {
  return simd_words(v, [=](uint32_t x) { return __shfl_sync(~0u, x, l); });
}

template <class T>
MSL_DEV T simd_shuffle_xor(T v, ushort m) {
  return simd_words(v, [=](uint32_t x) { return __shfl_xor_sync(~0u, x, m); });
}

template <class T>
MSL_DEV T simd_shuffle_down(T v, ushort d) {
  return simd_words(v, [=](uint32_t x) { return __shfl_down_sync(~0u, x, d); });
}

template <class T>
MSL_DEV T simd_shuffle_up(T v, ushort d) {
  return simd_words(v, [=](uint32_t x) { return __shfl_up_sync(~0u, x, d); });
}

template <class T>
MSL_DEV T simd_broadcast(T v, ushort l) {
  return simd_shuffle(v, l);
}

template <class T>
MSL_DEV T simd_broadcast_first(T v) {
  return simd_shuffle(v, ushort(0));
}

template <class T>
MSL_DEV T simd_shuffle_and_fill_down(T v, T fill, ushort d) {
  T r = simd_shuffle_down(v, d);
  return simd_me() + d < 32 ? r : fill;
}

template <class T>
MSL_DEV T simd_shuffle_and_fill_up(T v, T fill, ushort d) {
  T r = simd_shuffle_up(v, d);
  return simd_me() >= d ? r : fill;
}

template <class T>
MSL_DEV T simd_prefix_inclusive_sum(T v) {
  for (int d = 1; d < 32; d *= 2) {
    T r = simd_shuffle_up(v, d);
    if (simd_me() >= d) v = T(v + r);
  }
  return v;
}

#define MSL_FOLD(name, expr)        \
  template <class T>                \
  MSL_DEV T name(T a) {             \
    for (int d = 16; d; d /= 2) {   \
      T b = simd_shuffle_xor(a, d); \
      a = T(expr);                  \
    }                               \
    return a;                       \
  }

MSL_FOLD(simd_sum, a + b)
MSL_FOLD(simd_product, a* b) MSL_FOLD(simd_or, a | b) MSL_FOLD(simd_max, max(a, b))
    MSL_FOLD(simd_min, min(a, b)) MSL_DEV bool simd_all(bool v) {
  all_lanes("simd_all");
  return __all_sync(~0u, v);
}

MSL_DEV bool simd_any(bool v) {
  all_lanes("simd_any");
  return __any_sync(~0u, v);
}

// ---- 8x8 matrices: lane l holds row l/16*4 + l/2%4, columns c and c+1 with c = l/8%2*4 + l%2*2
// ----
template <class T, int R = 8, int C = 8>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8);
  vec<T, 2> e;

  MSL_HD simdgroup_matrix() : e(T(NAN)) {}  // not initialised on a Mac

  __device__ explicit simdgroup_matrix(T d) {
    for (int j = 0; j < 2; j++) e[j] = row(simd_me()) == col(simd_me()) + j ? d : T(0);
  }

  MSL_HD vec<T, 2>& thread_elements() { return e; }

  MSL_HD static constexpr int row(int l) { return l / 16 * 4 + l / 2 % 4; }

  MSL_HD static constexpr int col(int l) { return l / 8 % 2 * 4 + l % 2 * 2; }

  MSL_HD static constexpr int lane(int r, int c) {
    return r / 4 * 16 + c / 4 * 8 + r % 4 * 2 + c / 2 % 2;
  }  // holder of (r, c)
};

typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat> simdgroup_bfloat8x8;

template <class T, int R = 8, int C = R>
MSL_DEV simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T v) {
  simdgroup_matrix<T, R, C> m;
  m.e = v;
  return m;
}

template <class D, class A, class B, class C>
MSL_DEV void simdgroup_multiply_accumulate(simdgroup_matrix<D>& d, simdgroup_matrix<A> a,
                                           simdgroup_matrix<B> b, simdgroup_matrix<C> c) {
  using M = simdgroup_matrix<float>;
  const int l = simd_me(), r = M::row(l), k0 = M::col(l);
  float x = c.e[0], y = c.e[1];
  for (int k = 0; k < 8; k += 2) {
    const vec<A, 2> p = simd_shuffle(a.e, M::lane(r, k));  // A[r][k, k+1]
    const vec<B, 2> q = simd_shuffle(b.e, M::lane(k, k0)),
                    s = simd_shuffle(b.e, M::lane(k + 1, k0));  // B[k][c, c+1], B[k+1][...]
    x = ::fmaf(p[1], s[0], ::fmaf(p[0], q[0], x)), y = ::fmaf(p[1], s[1], ::fmaf(p[0], q[1], y));
  }
  d.e = vec<D, 2>(x, y);
}

template <class D, class A, class B>
MSL_DEV void simdgroup_multiply(simdgroup_matrix<D>& d, simdgroup_matrix<A> a,
                                simdgroup_matrix<B> b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float>(0));
}

template <class T>
MSL_DEV ulong simd_at(int j, ulong ld, vec<ulong, 2> o,
                      bool t) {  // where element j of this lane is
  ulong r = simdgroup_matrix<T>::row(simd_me()), c = simdgroup_matrix<T>::col(simd_me()) + j;
  return t ? (o.x + c) * ld + o.y + r : (o.y + r) * ld + o.x + c;
}

template <class T, class P>
MSL_DEV void simdgroup_load(simdgroup_matrix<T>& m, const P* p, ulong ld = 8, vec<ulong, 2> o = 0,
                            bool t = false) {
  all_lanes("simdgroup_load");
  for (int j = 0; j < 2; j++) m.e[j] = T(p[simd_at<T>(j, ld, o, t)]);
}

template <class T, class P>
MSL_DEV void simdgroup_store(simdgroup_matrix<T> m, P* p, ulong ld = 8, vec<ulong, 2> o = 0,
                             bool t = false) {
  all_lanes("simdgroup_store");
  for (int j = 0; j < 2; j++) p[simd_at<T>(j, ld, o, t)] = P(m.e[j]);
}
}  // namespace metal

// Poisons threadgroup memory, `bytes` of it, in the checked build.
namespace msl {
MSL_DEV void poison_threadgroup_memory(uint bytes) {
  if (!metal::checked) return;
  extern __shared__ uint end[];  // of the threadgroup memory: there is no dynamic part
  for (uint a = threadIdx.x * 4; a + 4 <= bytes; a += blockDim.x * 4)
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(uint(__cvta_generic_to_shared(end)) - bytes + a),
                 "r"(~0u)
                 : "memory");
  __syncthreads();
}
}  // namespace msl

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
