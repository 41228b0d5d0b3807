// SPDX-License-Identifier: MIT
#pragma once

// The register tile's multiply-adds without its loads, compiled once an instruction set: what the
// kernels could reach if nothing but arithmetic took time. peak.h runs it.

#include "sdpa/cpu/instruction_set.h"
#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

/// As many accumulators as the kernels use: enough to hide the latency of a multiply-add.
template <class S, typename Factor>
double spin(std::int64_t rounds, Factor a, Factor b, int flops_a_lane) {
  Tile<S, S::kRows, S::kColumns> tile;
  clear(tile);
  for (std::int64_t n = 0; n < rounds; ++n) {
    unroll<S::kRows>([&](auto i) SDPA_INLINE_LAMBDA {
      unroll<S::kColumns>(
          [&](auto j) SDPA_INLINE_LAMBDA { tile.v[i][j] = S::multiply_add(a, b, tile.v[i][j]); });
    });
    asm volatile("" : "+m"(a), "+m"(b));  // or the compiler would multiply once
  }
  float sink[S::kLanes * S::kRows * S::kColumns];
  store(tile, sink, S::kLanes * S::kColumns);
  asm volatile("" : : "m"(sink));
  return static_cast<double>(rounds) * S::kRows * S::kColumns * S::kLanes * flops_a_lane;
}

template <class S>
double spin_float32(std::int64_t rounds) {
  return spin<S>(rounds, S::broadcast(1e-9f), S::broadcast(1e-9f), 2);
}

template <class S>
double spin_bfloat16(std::int64_t rounds) {
  const auto factor = S::broadcast(BFloat16Pair{0});
  return spin<S>(rounds, factor, factor, 4);
}

template <class S>
SpinLoops spin_loops() {
  if constexpr (S::kHasBFloat16Dot)
    return {.float32 = spin_float32<S>, .bfloat16 = spin_bfloat16<S>};
  else
    return {.float32 = spin_float32<S>};
}

}  // namespace sdpa::cpu
