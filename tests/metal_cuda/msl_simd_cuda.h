// SPDX-License-Identifier: MIT
// What lanes do together, of metal_stdlib for CUDA: barriers, shuffles, reductions, 8x8 matrices. A
// part of msl_cuda.h. MSL_CHECK: threadgroup memory starts as NaNs, a SIMD operation or a barrier
// that some lanes do not reach is an error, a barrier whose flags name no memory orders none
// (racecheck sees none), and SIMD groups wait at random.
#pragma once

namespace metal {

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
MSL_FOLD(simd_product, a* b)
MSL_FOLD(simd_or, a | b)
MSL_FOLD(simd_max, max(a, b))
MSL_FOLD(simd_min, min(a, b))

MSL_DEV bool simd_all(bool v) {
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
