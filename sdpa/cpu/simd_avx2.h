// SPDX-License-Identifier: MIT
#pragma once

// AVX2 with FMA and F16C: eight lanes, sixteen registers. The tile of 4 x 3 accumulators, three
// vectors of lanes and one broadcast fills them all.

#include <immintrin.h>

#include "sdpa/cpu/simd.h"

namespace sdpa::cpu {
namespace {

struct Avx2 {
  using Vec = __m256;
  using Words = __m256i;
  using Mask = __m256;  ///< all bits of a lane, or none

  static constexpr int kLanes = 8;
  static constexpr int kRows = 4;
  static constexpr int kColumns = 3;
  static constexpr bool kLooksUpPowers = false;
  static constexpr bool kHasBFloat16Dot = false;

  static SDPA_INLINE Vec zero() { return _mm256_setzero_ps(); }

  static SDPA_INLINE Vec broadcast(float value) { return _mm256_set1_ps(value); }

  static SDPA_INLINE Vec load(const float* from) { return _mm256_loadu_ps(from); }

  static SDPA_INLINE Vec load(const Float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  static SDPA_INLINE Vec load(const BFloat16* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))), 16));
  }

  template <typename Element>
  static SDPA_INLINE Vec load_part(const Element* from, int count) {
    Element part[kLanes] = {};
    __builtin_memcpy(part, from, static_cast<std::size_t>(count) * sizeof(Element));
    return load(part);
  }

  static SDPA_INLINE void store(float* to, Vec v) { _mm256_storeu_ps(to, v); }

  static SDPA_INLINE void store(Float16* to, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static SDPA_INLINE void store(BFloat16* to, Vec v) {
    const __m256i words = to_brain(v);
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packus_epi32(low, high));
  }

  template <typename Element>
  static SDPA_INLINE void store_part(Element* to, Vec v, int count) {
    Element part[kLanes];
    store(part, v);
    __builtin_memcpy(to, part, static_cast<std::size_t>(count) * sizeof(Element));
  }

  static SDPA_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }

  static SDPA_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }

  static SDPA_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }

  static SDPA_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }

  /// min and max: `b` where either is NaN.
  static SDPA_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }

  static SDPA_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }

  static SDPA_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

  static SDPA_INLINE Vec round(Vec v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  /// For n from -126 on; beyond 127 as if it were 127.
  static SDPA_INLINE Vec scale_by_power(Vec v, Vec n) {
    const __m256i whole = _mm256_cvtps_epi32(min(broadcast(127.0f), n));
    const __m256i one = _mm256_castps_si256(broadcast(1.0f));
    return mul(v, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(whole, 23), one)));
  }

  static SDPA_INLINE Mask greater(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }

  static SDPA_INLINE Mask not_less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }

  static SDPA_INLINE Mask is_finite(Vec v) {
    const Vec magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
    return _mm256_cmp_ps(magnitude, _mm256_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  }

  static SDPA_INLINE bool any(Mask mask) { return _mm256_movemask_ps(mask) != 0; }

  static SDPA_INLINE std::uint32_t to_bits(Mask mask) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(mask));
  }

  static SDPA_INLINE Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }

  static SDPA_INLINE Vec select(Mask mask, Vec yes, Vec no) {
    return _mm256_blendv_ps(no, yes, mask);
  }

  static SDPA_INLINE Vec keep(Mask mask, Vec v) { return _mm256_and_ps(mask, v); }

  static SDPA_INLINE Words load_words(const std::uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }

  static SDPA_INLINE void store_words(std::uint32_t* to, Words w) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), w);
  }

  static SDPA_INLINE Words as_words(Vec v) { return _mm256_castps_si256(v); }

  static SDPA_INLINE Words broadcast_word(std::uint32_t value) {
    return _mm256_set1_epi32(static_cast<int>(value));
  }

  static SDPA_INLINE Words word_and(Words a, Words b) { return _mm256_and_si256(a, b); }

  static SDPA_INLINE Words word_or(Words a, Words b) { return _mm256_or_si256(a, b); }

  static SDPA_INLINE Words word_xor(Words a, Words b) { return _mm256_xor_si256(a, b); }

  static SDPA_INLINE Words word_add(Words a, Words b) { return _mm256_add_epi32(a, b); }

  /// Lanes where a has the one bit that is set in b.
  static SDPA_INLINE Mask test(Words a, Words b) {
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(a, b), b));
  }

  /// Unsigned a >= b.
  static SDPA_INLINE Mask not_below(Words a, Words b) {
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(a, b), a));
  }

  static SDPA_INLINE Words or_where(Words words, Mask mask, Words bits) {
    return _mm256_or_si256(words, _mm256_and_si256(_mm256_castps_si256(mask), bits));
  }

  static SDPA_INLINE void multiply_wide(Words a, std::uint32_t factor, Words& low, Words& high) {
    const Words b = broadcast_word(factor);
    const Words even = _mm256_mul_epu32(a, b);
    const Words odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  }

  /// Bit i is set where byte i of 32 is not zero.
  static SDPA_INLINE std::uint32_t byte_bits(const std::uint8_t* from) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return ~static_cast<std::uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
  }

  /// Pairs, then quads within 128-bit halves, then the halves themselves.
  static SDPA_INLINE void transpose(Vec (&rows)[kLanes]) {
    Vec t[kLanes];
    unroll<4>([&](auto i) SDPA_INLINE_LAMBDA {
      t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    });
    unroll<2>([&](auto i) SDPA_INLINE_LAMBDA {
      rows[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      rows[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      rows[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      rows[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    });
    unroll<4>([&](auto i) SDPA_INLINE_LAMBDA {
      t[i] = _mm256_permute2f128_ps(rows[i], rows[4 + i], 0x20);
      t[4 + i] = _mm256_permute2f128_ps(rows[i], rows[4 + i], 0x31);
    });
    unroll<kLanes>([&](auto i) SDPA_INLINE_LAMBDA { rows[i] = t[i]; });
  }

  /// Lane i is the sum of rows[i]: pairs, quads, then halves, halving the vectors each time.
  static SDPA_INLINE Vec sum_rows(Vec (&rows)[kLanes]) {
    unroll<4>([&](auto i) SDPA_INLINE_LAMBDA {
      rows[i] = add(_mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]),
                    _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
    });
    unroll<2>([&](auto i) SDPA_INLINE_LAMBDA {
      rows[i] = add(_mm256_shuffle_ps(rows[2 * i], rows[2 * i + 1], 0x44),
                    _mm256_shuffle_ps(rows[2 * i], rows[2 * i + 1], 0xee));
    });
    return add(_mm256_permute2f128_ps(rows[0], rows[1], 0x20),
               _mm256_permute2f128_ps(rows[0], rows[1], 0x31));
  }

 private:
  /// Rounds to nearest, ties to even; NaN stays NaN. The result is in the low halves.
  static SDPA_INLINE __m256i to_brain(Vec v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const Vec nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan)), 16);
  }
};

}  // namespace
}  // namespace sdpa::cpu
