// SPDX-License-Identifier: MIT
#pragma once

// NEON with the dot product of bfloat16 pairs (FEAT_BF16: Apple M2, Neoverse V1 and later): one
// instruction adds the products of two neighbouring bfloat16 elements to a float, twice the
// multiply-adds of fp32. It rounds to odd inside and takes subnormal numbers for 0.

#include "sdpa/cpu/simd_neon.h"

namespace sdpa::cpu {
namespace {

struct NeonBFloat16 : Neon {
  using Neon::broadcast;
  using Neon::load;
  using Neon::multiply_add;
  using Neon::store;

  static constexpr bool kHasBFloat16Dot = true;

  struct Pairs {
    uint32x4_t words;
  };

  static SDPA_INLINE Pairs load(const BFloat16Pair* from) {
    return {vld1q_u32(reinterpret_cast<const std::uint32_t*>(from))};
  }

  static SDPA_INLINE Pairs load_pairs(const BFloat16* from) {
    return {vreinterpretq_u32_u16(vld1q_u16(reinterpret_cast<const std::uint16_t*>(from)))};
  }

  /// `count` elements, then zeros.
  static SDPA_INLINE Pairs load_pairs_part(const BFloat16* from, int count) {
    BFloat16 part[2 * kLanes] = {};
    __builtin_memcpy(part, from, static_cast<std::size_t>(count) * sizeof(BFloat16));
    return load_pairs(part);
  }

  static SDPA_INLINE void store(BFloat16Pair* to, Pairs pairs) {
    vst1q_u32(reinterpret_cast<std::uint32_t*>(to), pairs.words);
  }

  /// GCC 12 writes a constant pair of ones as `fmov v.8h, 1`, which is another number and not in
  /// this instruction set; behind the barrier no word is known to be constant.
  static SDPA_INLINE Pairs broadcast(BFloat16Pair pair) {
    uint32x4_t words = vdupq_n_u32(pair.bits);
    asm("" : "+w"(words));
    return {words};
  }

  static SDPA_INLINE Vec multiply_add(Pairs a, Pairs b, Vec c) {
    return reinterpret_cast<Vec>(vbfdotq_f32(reinterpret_cast<float32x4_t>(c),
                                             vreinterpretq_bf16_u32(a.words),
                                             vreinterpretq_bf16_u32(b.words)));
  }

  static SDPA_INLINE void store_rounded(BFloat16* to, Vec v) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(to), rounded(v));
  }

  /// Elements of two rows side by side.
  static SDPA_INLINE void interleave(Pairs a, Pairs b, Pairs& first, Pairs& second) {
    const uint16x8_t one = vreinterpretq_u16_u32(a.words), other = vreinterpretq_u16_u32(b.words);
    first = {vreinterpretq_u32_u16(vzip1q_u16(one, other))};
    second = {vreinterpretq_u32_u16(vzip2q_u16(one, other))};
  }

  /// The order of `interleave` is that of the columns.
  static SDPA_INLINE void order_as_columns(Vec&, Vec&) {}

  /// Lane by lane (even, odd), each rounded to nearest.
  static SDPA_INLINE Pairs pack_pairs(Vec even, Vec odd) {
    const uint16x4x2_t zipped = vzip_u16(rounded(even), rounded(odd));
    return {vreinterpretq_u32_u16(vcombine_u16(zipped.val[0], zipped.val[1]))};
  }

  /// To the nearest bfloat16.
  static SDPA_INLINE Vec round_to_bfloat16(Vec v) {
    return reinterpret_cast<Vec>(vshll_n_u16(rounded(v), 16));
  }

 private:
  static SDPA_INLINE uint16x4_t rounded(Vec v) {
    return vreinterpret_u16_bf16(vcvt_bf16_f32(reinterpret_cast<float32x4_t>(v)));
  }
};

}  // namespace
}  // namespace sdpa::cpu
