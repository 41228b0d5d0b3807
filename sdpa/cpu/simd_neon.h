// SPDX-License-Identifier: MIT
#pragma once

// NEON (any 64-bit Arm): four lanes, thirty-two registers, so the tile of 8 x 3 accumulators fits.
// Everything else is the compiler's vectors, which are NEON's.

#include <arm_neon.h>

#include "sdpa/cpu/simd_vector.h"

namespace sdpa::cpu {
namespace {

struct Neon : Vector4 {
  static constexpr int kRows = 8;
  static constexpr int kColumns = 3;

  using Vector4::load;
  using Vector4::store;

  static SDPA_INLINE Vec load(const BFloat16* from) {
    const uint16x4_t halves = vld1_u16(reinterpret_cast<const std::uint16_t*>(from));
    return reinterpret_cast<Vec>(vshll_n_u16(halves, 16));
  }

  static SDPA_INLINE Vec load(const Float16* from) {
    return reinterpret_cast<Vec>(
        vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(from)))));
  }

  static SDPA_INLINE void store(Float16* to, Vec v) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(to),
             vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v))));
  }

  static SDPA_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
    return reinterpret_cast<Vec>(vfmaq_f32(reinterpret_cast<float32x4_t>(c),
                                           reinterpret_cast<float32x4_t>(a),
                                           reinterpret_cast<float32x4_t>(b)));
  }

  static SDPA_INLINE Vec round(Vec v) {
    return reinterpret_cast<Vec>(vrndnq_f32(reinterpret_cast<float32x4_t>(v)));
  }
};

}  // namespace
}  // namespace sdpa::cpu
