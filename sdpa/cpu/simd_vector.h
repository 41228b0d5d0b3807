// SPDX-License-Identifier: MIT
#pragma once

// Any machine, by the compiler's own vectors of four floats: what an instruction set offers where
// no intrinsics are written for it. NEON refines it. The tile of 4 x 2 accumulators fits sixteen
// registers.

#include "sdpa/cpu/simd.h"

namespace sdpa::cpu {
namespace {

struct Vector4 {
  typedef float Vec __attribute__((vector_size(16)));
  typedef std::uint32_t Words __attribute__((vector_size(16)));
  typedef std::int32_t Mask __attribute__((vector_size(16)));  ///< -1 or 0
  typedef std::uint64_t Wide __attribute__((vector_size(32)));

  static constexpr int kLanes = 4;
  static constexpr int kRows = 4;
  static constexpr int kColumns = 2;
  static constexpr bool kLooksUpPowers = false;
  static constexpr bool kHasBFloat16Dot = false;

  static SDPA_INLINE Vec zero() { return Vec{}; }

  static SDPA_INLINE Vec broadcast(float value) { return Vec{value, value, value, value}; }

  static SDPA_INLINE Vec load(const float* from) {
    Vec v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
  }

  static SDPA_INLINE Vec load(const BFloat16* from) {
    Words w;
    for (int i = 0; i < kLanes; ++i) {
      w[i] = static_cast<std::uint32_t>(from[i].bits) << 16;
    }
    return reinterpret_cast<Vec>(w);
  }

  /// Normal halves move their exponent; subnormal ones are whole multiples of 2^-24.
  static SDPA_INLINE Vec load(const Float16* from) {
    Words w;
    for (int i = 0; i < kLanes; ++i) {
      w[i] = from[i].bits;
    }
    const Words magnitude = w & 0x7fffu, sign = (w & 0x8000u) << 16;
    const Words normal = (magnitude << 13) + 0x38000000u;
    const Words special = (magnitude << 13) + 0x70000000u;  // infinity and NaN
    const Vec small = __builtin_convertvector(magnitude, Vec) * 0x1p-24f;
    const Words tiny = reinterpret_cast<Words>(small);
    Words result = choose(magnitude >= 0x7c00u, special, normal);
    result = choose(magnitude < 0x400u, tiny, result);
    return reinterpret_cast<Vec>(result | sign);
  }

  template <typename Element>
  static SDPA_INLINE Vec load_part(const Element* from, int count) {
    Element part[kLanes] = {};
    __builtin_memcpy(part, from, static_cast<std::size_t>(count) * sizeof(Element));
    return load(part);
  }

  static SDPA_INLINE void store(float* to, Vec v) { __builtin_memcpy(to, &v, sizeof v); }

  static SDPA_INLINE void store(BFloat16* to, Vec v) {
    const Words bits = reinterpret_cast<Words>(v);
    const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const Words result = choose(v != v, bits | 0x400000u, rounded) >> 16;
    for (int i = 0; i < kLanes; ++i) {
      to[i].bits = static_cast<std::uint16_t>(result[i]);
    }
  }

  /// The same steps as to_float16 in sdpa/dtype.h.
  static SDPA_INLINE void store(Float16* to, Vec v) {
    const Words bits = reinterpret_cast<Words>(v);
    const Words sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const Words rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const Vec shifted = reinterpret_cast<Vec>(magnitude) + 0.5f;
    const Words tiny = reinterpret_cast<Words>(shifted) - 0x3f000000u;
    Words result = choose(magnitude < 0x38800000u, tiny, rounded);
    result = choose(magnitude >= 0x477ff000u, result * 0u + 0x7c00u, result);
    result = choose(magnitude > 0x7f800000u, result * 0u + 0x7e00u, result);
    for (int i = 0; i < kLanes; ++i) {
      to[i].bits = static_cast<std::uint16_t>(result[i] | sign[i]);
    }
  }

  template <typename Element>
  static SDPA_INLINE void store_part(Element* to, Vec v, int count) {
    Element part[kLanes];
    store(part, v);
    __builtin_memcpy(to, part, static_cast<std::size_t>(count) * sizeof(Element));
  }

  static SDPA_INLINE Vec add(Vec a, Vec b) { return a + b; }

  static SDPA_INLINE Vec sub(Vec a, Vec b) { return a - b; }

  static SDPA_INLINE Vec mul(Vec a, Vec b) { return a * b; }

  static SDPA_INLINE Vec div(Vec a, Vec b) { return a / b; }

  /// min and max: `b` where either is NaN.
  static SDPA_INLINE Vec min(Vec a, Vec b) { return select(a < b, a, b); }

  static SDPA_INLINE Vec max(Vec a, Vec b) { return select(a > b, a, b); }

  static SDPA_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }

  /// To nearest, ties to even, for |v| < 2^22; larger values, infinity and NaN come back as they
  /// are.
  static SDPA_INLINE Vec round(Vec v) {
    const Vec magic = broadcast(12582912.0f);
    const Vec small = v + magic;
    const Mask in_range = (v < 4194304.0f) & (v > -4194304.0f);
    return select(in_range, small - magic, v);
  }

  /// For n from -126 on; beyond 127 as if it were 127.
  static SDPA_INLINE Vec scale_by_power(Vec v, Vec n) {
    const Vec bounded = max(broadcast(-127.0f), min(broadcast(127.0f), n));
    const Words exponent = reinterpret_cast<Words>(__builtin_convertvector(bounded, Mask)) << 23;
    return v * reinterpret_cast<Vec>(exponent + 0x3f800000u);
  }

  static SDPA_INLINE Mask greater(Vec a, Vec b) { return a > b; }

  static SDPA_INLINE Mask not_less(Vec a, Vec b) { return ~(a < b); }

  static SDPA_INLINE Mask is_finite(Vec v) { return (v - v) == zero(); }

  static SDPA_INLINE bool any(Mask mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }

  static SDPA_INLINE std::uint32_t to_bits(Mask mask) {
    return static_cast<std::uint32_t>((mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) |
                                      (mask[3] & 8));
  }

  static SDPA_INLINE Mask both(Mask a, Mask b) { return a & b; }

  static SDPA_INLINE Vec select(Mask mask, Vec yes, Vec no) {
    return reinterpret_cast<Vec>(
        choose(mask, reinterpret_cast<Words>(yes), reinterpret_cast<Words>(no)));
  }

  static SDPA_INLINE Vec keep(Mask mask, Vec v) {
    return reinterpret_cast<Vec>(reinterpret_cast<Mask>(v) & mask);
  }

  static SDPA_INLINE Words load_words(const std::uint32_t* from) {
    Words w;
    __builtin_memcpy(&w, from, sizeof w);
    return w;
  }

  static SDPA_INLINE void store_words(std::uint32_t* to, Words w) {
    __builtin_memcpy(to, &w, sizeof w);
  }

  static SDPA_INLINE Words as_words(Vec v) { return reinterpret_cast<Words>(v); }

  static SDPA_INLINE Words broadcast_word(std::uint32_t value) {
    return Words{value, value, value, value};
  }

  static SDPA_INLINE Words word_and(Words a, Words b) { return a & b; }

  static SDPA_INLINE Words word_or(Words a, Words b) { return a | b; }

  static SDPA_INLINE Words word_xor(Words a, Words b) { return a ^ b; }

  static SDPA_INLINE Words word_add(Words a, Words b) { return a + b; }

  /// Lanes where a and b share a bit.
  static SDPA_INLINE Mask test(Words a, Words b) { return (a & b) != 0u; }

  /// Unsigned a >= b.
  static SDPA_INLINE Mask not_below(Words a, Words b) { return a >= b; }

  static SDPA_INLINE Words or_where(Words words, Mask mask, Words bits) {
    return words | (reinterpret_cast<Words>(mask) & bits);
  }

  static SDPA_INLINE void multiply_wide(Words a, std::uint32_t factor, Words& low, Words& high) {
    for (int i = 0; i < kLanes; ++i) {
      const std::uint64_t product = static_cast<std::uint64_t>(a[i]) * factor;
      low[i] = static_cast<std::uint32_t>(product);
      high[i] = static_cast<std::uint32_t>(product >> 32);
    }
  }

  /// Bit i is set where byte i of 32 is not zero.
  static SDPA_INLINE std::uint32_t byte_bits(const std::uint8_t* from) {
    std::uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<std::uint32_t>(from[i] != 0) << i;
    return bits;
  }

  static SDPA_INLINE void transpose(Vec (&rows)[kLanes]) {
    const Vec a = rows[0], b = rows[1], c = rows[2], d = rows[3];
    rows[0] = Vec{a[0], b[0], c[0], d[0]};
    rows[1] = Vec{a[1], b[1], c[1], d[1]};
    rows[2] = Vec{a[2], b[2], c[2], d[2]};
    rows[3] = Vec{a[3], b[3], c[3], d[3]};
  }

  /// Lane i is the sum of rows[i].
  static SDPA_INLINE Vec sum_rows(Vec (&rows)[kLanes]) {
    transpose(rows);
    return (rows[0] + rows[1]) + (rows[2] + rows[3]);
  }

 protected:
  static SDPA_INLINE Words choose(Mask mask, Words yes, Words no) {
    const Words m = reinterpret_cast<Words>(mask);
    return (yes & m) | (no & ~m);
  }
};

}  // namespace
}  // namespace sdpa::cpu
