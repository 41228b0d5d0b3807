// SPDX-License-Identifier: MIT
#pragma once

// AVX-512 with the dot product of bfloat16 pairs (Zen 4, Cooper Lake and later): one instruction
// adds the products of two neighbouring bfloat16 elements to a float, twice the multiply-adds of
// fp32 on Zen 4. Processors with AMX run it at a lower rate than fp32's, so it is not preferred
// there.

#include "sdpa/cpu/simd_avx512.h"

namespace sdpa::cpu {
namespace {

struct Avx512BFloat16 : Avx512 {
  using Avx512::broadcast;
  using Avx512::load;
  using Avx512::multiply_add;
  using Avx512::store;

  static constexpr bool kHasBFloat16Dot = true;

  struct Pairs {
    __m512i words;
  };

  static SDPA_INLINE Pairs load(const BFloat16Pair* from) { return {_mm512_loadu_si512(from)}; }

  static SDPA_INLINE Pairs load_pairs(const BFloat16* from) { return {_mm512_loadu_si512(from)}; }

  /// `count` elements, then zeros.
  static SDPA_INLINE Pairs load_pairs_part(const BFloat16* from, int count) {
    return {_mm512_maskz_loadu_epi16(_bzhi_u32(~0u, static_cast<unsigned>(count)), from)};
  }

  static SDPA_INLINE void store(BFloat16Pair* to, Pairs pairs) {
    _mm512_storeu_si512(to, pairs.words);
  }

  static SDPA_INLINE Pairs broadcast(BFloat16Pair pair) {
    return {_mm512_set1_epi32(static_cast<int>(pair.bits))};
  }

  static SDPA_INLINE Vec multiply_add(Pairs a, Pairs b, Vec c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a.words, (__m512bh)b.words);
  }

  /// Rounded by the instruction for it; subnormal numbers become 0.
  static SDPA_INLINE void store_rounded(BFloat16* to, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(v));
  }

  /// Elements of two rows side by side, in an order of their own: see order_as_columns.
  static SDPA_INLINE void interleave(Pairs a, Pairs b, Pairs& first, Pairs& second) {
    first = {_mm512_unpacklo_epi16(a.words, b.words)};
    second = {_mm512_unpackhi_epi16(a.words, b.words)};
  }

  /// Two vectors in the order of `interleave`, which takes quads in turn, to neighbouring columns.
  static SDPA_INLINE void order_as_columns(Vec& a, Vec& b) {
    const Vec low = _mm512_shuffle_f32x4(a, b, 0x44), high = _mm512_shuffle_f32x4(a, b, 0xee);
    a = _mm512_shuffle_f32x4(low, low, 0xd8);
    b = _mm512_shuffle_f32x4(high, high, 0xd8);
  }

  /// Lane by lane (even, odd), each rounded to nearest.
  static SDPA_INLINE Pairs pack_pairs(Vec even, Vec odd) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    constexpr int kHighOrLow = 0xea;  // (a & b) | c
    return {_mm512_ternarylogic_epi32(high, _mm512_set1_epi32(static_cast<int>(0xffff0000u)), low,
                                      kHighOrLow)};
  }
};

}  // namespace
}  // namespace sdpa::cpu
