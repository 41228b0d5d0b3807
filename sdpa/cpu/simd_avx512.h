// SPDX-License-Identifier: MIT
#pragma once

// AVX-512 F, BW, DQ, VL: sixteen lanes, thirty-two registers. The tile of 8 x 3 accumulators, three
// vectors of lanes and one broadcast fills 28 of them; of the shapes tried (8x2, 16x1, 8x4, 16x2,
// 4x4) it is the fastest, since every broadcast serves three multiply-adds and nothing spills.

#include <immintrin.h>

#include "sdpa/cpu/simd.h"

namespace sdpa::cpu {
namespace {

/// 2^(i / 32) as bits, less i << 18.
struct PowersOf32nds {
  alignas(64) std::uint32_t words[32];

  consteval PowersOf32nds() : words() {
    double power = 1;
    for (std::uint32_t i = 0; i < 32; ++i, power *= 1.0218971486541166)
      words[i] = __builtin_bit_cast(std::uint32_t, static_cast<float>(power)) - (i << 18);
  }
};

constexpr PowersOf32nds kPowers;

struct Avx512 {
  using Vec = __m512;
  using Words = __m512i;
  using Mask = __mmask16;

  static constexpr int kLanes = 16;
  static constexpr int kRows = 8;
  static constexpr int kColumns = 3;
  static constexpr bool kLooksUpPowers = true;
  static constexpr bool kHasBFloat16Dot = false;

  static SDPA_INLINE Mask first_lanes(int count) {
    return static_cast<Mask>(_bzhi_u32(0xffffu, static_cast<unsigned>(count)));
  }

  static SDPA_INLINE Vec zero() { return _mm512_setzero_ps(); }

  static SDPA_INLINE Vec broadcast(float value) { return _mm512_set1_ps(value); }

  static SDPA_INLINE Vec load(const float* from) { return _mm512_loadu_ps(from); }

  static SDPA_INLINE Vec load(const Float16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  static SDPA_INLINE Vec load(const BFloat16* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  static SDPA_INLINE Vec load_part(const float* from, int count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), from);
  }

  static SDPA_INLINE Vec load_part(const Float16* from, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), from));
  }

  static SDPA_INLINE Vec load_part(const BFloat16* from, int count) {
    return widen(_mm256_maskz_loadu_epi16(first_lanes(count), from));
  }

  /// 32 elements as floats: the even ones and the odd ones. One operation each, where widening
  /// sixteen side by side takes two.
  struct Halves {
    Vec even, odd;
  };

  static SDPA_INLINE Halves load_pairs(const BFloat16* from) {
    return halves_of(_mm512_loadu_si512(from));
  }

  /// `count` elements, then zeros.
  static SDPA_INLINE Halves load_pairs_part(const BFloat16* from, int count) {
    const auto lanes = static_cast<__mmask32>(_bzhi_u32(~0u, static_cast<unsigned>(count)));
    return halves_of(_mm512_maskz_loadu_epi16(lanes, from));
  }

  static SDPA_INLINE Vec multiply_add(Halves a, Halves b, Vec c) {
    return multiply_add(a.odd, b.odd, multiply_add(a.even, b.even, c));
  }

  /// To nearest, ties away from zero. A NaN may come out as another number. The processor's own
  /// conversion lasts four times as long as an addition.
  static SDPA_INLINE Vec round_to_bfloat16(Vec v) {
    const Words raised = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(_mm512_and_si512(raised, _mm512_set1_epi32(-0x10000)));
  }

  /// Even and odd columns to neighbouring ones.
  static SDPA_INLINE void join_halves(Vec& a, Vec& b) {
    const Words low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const Words high =
        _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
    const Vec even = a;
    a = _mm512_permutex2var_ps(even, low, b);
    b = _mm512_permutex2var_ps(even, high, b);
  }

  static SDPA_INLINE void store(float* to, Vec v) { _mm512_storeu_ps(to, v); }

  static SDPA_INLINE void store(Float16* to, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_half(v));
  }

  static SDPA_INLINE void store(BFloat16* to, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_brain(v));
  }

  static SDPA_INLINE void store_part(float* to, Vec v, int count) {
    _mm512_mask_storeu_ps(to, first_lanes(count), v);
  }

  static SDPA_INLINE void store_part(Float16* to, Vec v, int count) {
    _mm256_mask_storeu_epi16(to, first_lanes(count), to_half(v));
  }

  static SDPA_INLINE void store_part(BFloat16* to, Vec v, int count) {
    _mm256_mask_storeu_epi16(to, first_lanes(count), to_brain(v));
  }

  static SDPA_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }

  static SDPA_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }

  static SDPA_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }

  static SDPA_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }

  /// min and max: `b` where either is NaN.
  static SDPA_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }

  static SDPA_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }

  static SDPA_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

  static SDPA_INLINE Vec round(Vec v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  static SDPA_INLINE Vec scale_by_power(Vec v, Vec n) { return _mm512_scalef_ps(v, n); }

  /// v with its magnitude at most `most`; `most` where v is NaN.
  static SDPA_INLINE Vec limit(Vec v, Vec most) {
    constexpr int kLesserMagnitudeSignOfFirst = 2;
    return _mm512_range_ps(v, most, kLesserMagnitudeSignOfFirst);
  }

  /// v less the nearest multiple of 1/32; 0 where v is infinite.
  static SDPA_INLINE Vec beyond_32nds(Vec v) { return _mm512_reduce_ps(v, 5 << 4); }

  /// 2 to the power of the multiple of 1/32 nearest to v, for |v| <= 127; at -127, 0. Adding 1.5 *
  /// 2^18 leaves 32 v, rounded, in the lowest bits: five choose from the table, the others are the
  /// exponent, from which the table has taken off what those five add to it.
  static SDPA_INLINE Vec power_of_32nds(Vec v) {
    const Words n = as_words(add(v, broadcast(0x1.8p18f)));
    const Words power = _mm512_permutex2var_epi32(_mm512_load_si512(kPowers.words), n,
                                                  _mm512_load_si512(kPowers.words + kLanes));
    return _mm512_castsi512_ps(word_add(power, _mm512_slli_epi32(n, 18)));
  }

  static SDPA_INLINE Mask greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

  static SDPA_INLINE Mask not_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }

  static SDPA_INLINE Mask is_finite(Vec v) {
    return static_cast<Mask>(~_mm512_fpclass_ps_mask(v, 0x99));
  }

  static SDPA_INLINE bool any(Mask mask) { return mask != 0; }

  static SDPA_INLINE std::uint32_t to_bits(Mask mask) { return mask; }

  static SDPA_INLINE Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }

  static SDPA_INLINE Vec select(Mask mask, Vec yes, Vec no) {
    return _mm512_mask_blend_ps(mask, no, yes);
  }

  static SDPA_INLINE Vec keep(Mask mask, Vec v) { return _mm512_maskz_mov_ps(mask, v); }

  static SDPA_INLINE Words load_words(const std::uint32_t* from) {
    return _mm512_loadu_si512(from);
  }

  static SDPA_INLINE void store_words(std::uint32_t* to, Words w) { _mm512_storeu_si512(to, w); }

  static SDPA_INLINE Words as_words(Vec v) { return _mm512_castps_si512(v); }

  static SDPA_INLINE Words broadcast_word(std::uint32_t value) {
    return _mm512_set1_epi32(static_cast<int>(value));
  }

  static SDPA_INLINE Words word_and(Words a, Words b) { return _mm512_and_si512(a, b); }

  static SDPA_INLINE Words word_or(Words a, Words b) { return _mm512_or_si512(a, b); }

  static SDPA_INLINE Words word_xor(Words a, Words b) { return _mm512_xor_si512(a, b); }

  static SDPA_INLINE Words word_add(Words a, Words b) { return _mm512_add_epi32(a, b); }

  /// Lanes where a and b share a bit.
  static SDPA_INLINE Mask test(Words a, Words b) { return _mm512_test_epi32_mask(a, b); }

  /// Unsigned a >= b.
  static SDPA_INLINE Mask not_below(Words a, Words b) { return _mm512_cmpge_epu32_mask(a, b); }

  static SDPA_INLINE Words or_where(Words words, Mask mask, Words bits) {
    return _mm512_mask_or_epi32(words, mask, words, bits);
  }

  static SDPA_INLINE void multiply_wide(Words a, std::uint32_t factor, Words& low, Words& high) {
    const Words b = broadcast_word(factor);
    const Words even = _mm512_mul_epu32(a, b);
    const Words odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), b);
    low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
    high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  }

  /// Bit i is set where byte i of 32 is not zero.
  static SDPA_INLINE std::uint32_t byte_bits(const std::uint8_t* from) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm256_test_epi8_mask(bytes, bytes);
  }

  /// Pairs, then quads within 128-bit quarters, then the quarters themselves.
  static SDPA_INLINE void transpose(Vec (&rows)[kLanes]) {
    Vec t[kLanes];
    unroll<8>([&](auto i) SDPA_INLINE_LAMBDA {
      t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    });
    unroll<4>([&](auto i) SDPA_INLINE_LAMBDA {
      rows[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      rows[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      rows[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      rows[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    });
    unroll<4>([&](auto i) SDPA_INLINE_LAMBDA {
      t[i] = _mm512_shuffle_f32x4(rows[i], rows[4 + i], 0x88);
      t[4 + i] = _mm512_shuffle_f32x4(rows[8 + i], rows[12 + i], 0x88);
      t[8 + i] = _mm512_shuffle_f32x4(rows[i], rows[4 + i], 0xdd);
      t[12 + i] = _mm512_shuffle_f32x4(rows[8 + i], rows[12 + i], 0xdd);
    });
    unroll<4>([&](auto i) SDPA_INLINE_LAMBDA {
      rows[i] = _mm512_shuffle_f32x4(t[i], t[4 + i], 0x88);
      rows[8 + i] = _mm512_shuffle_f32x4(t[i], t[4 + i], 0xdd);
      rows[4 + i] = _mm512_shuffle_f32x4(t[8 + i], t[12 + i], 0x88);
      rows[12 + i] = _mm512_shuffle_f32x4(t[8 + i], t[12 + i], 0xdd);
    });
  }

  /// Lane i is the sum of rows[i]: pairs, quads, then quarters, halving the vectors each time.
  static SDPA_INLINE Vec sum_rows(Vec (&rows)[kLanes]) {
    unroll<8>([&](auto i) SDPA_INLINE_LAMBDA {
      rows[i] = add(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]),
                    _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
    });
    unroll<4>([&](auto i) SDPA_INLINE_LAMBDA {
      rows[i] = add(_mm512_shuffle_ps(rows[2 * i], rows[2 * i + 1], 0x44),
                    _mm512_shuffle_ps(rows[2 * i], rows[2 * i + 1], 0xee));
    });
    unroll<2>([&](auto i)
                  SDPA_INLINE_LAMBDA { rows[i] = add_quarters(rows[2 * i], rows[2 * i + 1]); });
    return add_quarters(rows[0], rows[1]);
  }

 private:
  static SDPA_INLINE Vec add_quarters(Vec a, Vec b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }

  static SDPA_INLINE Vec widen(__m256i brain) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(brain), 16));
  }

  static SDPA_INLINE Halves halves_of(__m512i pairs) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)))};
  }

  static SDPA_INLINE __m256i to_half(Vec v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  /// Rounds to nearest, ties to even; NaN stays NaN.
  static SDPA_INLINE __m256i to_brain(Vec v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const Mask nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
  }
};

}  // namespace
}  // namespace sdpa::cpu
