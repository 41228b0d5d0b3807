// SPDX-License-Identifier: MIT
#pragma once

// The register tile's multiply-adds without its loads, compiled once an instruction set.

#include "benchmarks/peak.h"
#include "sdpa/cpu/tile.h"

namespace sdpa::benchmarks {

/// As many accumulators as the kernels use: enough to hide the latency of a multiply-add.
template <class S, typename Factor, int FlopsPerLane>
double spin(std::int64_t iterations, Factor a, Factor b) {
  cpu::Tile<S, S::kRows, S::kColumns> tile;
  cpu::clear(tile);
  for (std::int64_t n = 0; n < iterations; ++n) {
    cpu::unroll<S::kRows>([&](auto i) SDPA_INLINE_LAMBDA {
      cpu::unroll<S::kColumns>(
          [&](auto j) SDPA_INLINE_LAMBDA { tile.v[i][j] = S::multiply_add(a, b, tile.v[i][j]); });
    });
    asm volatile("" : "+m"(a), "+m"(b));
  }
  float sink[S::kLanes * S::kRows * S::kColumns];
  cpu::store(tile, sink, S::kLanes * S::kColumns);
  asm volatile("" : : "m"(sink));
  return static_cast<double>(iterations) * S::kRows * S::kColumns * S::kLanes * FlopsPerLane;
}

template <class S>
double spin_float32(std::int64_t iterations) {
  return spin<S, typename S::Vec, 2>(iterations, S::broadcast(1e-9f), S::broadcast(1e-9f));
}

template <class S>
double spin_bfloat16(std::int64_t iterations) {
  const auto factor = S::broadcast(cpu::BFloat16Pair{0});
  return spin<S, typename S::Pairs, 4>(iterations, factor, factor);
}

template <class S>
Peak make_peak() {
  if constexpr (S::kHasBFloat16Dot) return {spin_float32<S>, spin_bfloat16<S>};
  return {spin_float32<S>, nullptr};
}

}  // namespace sdpa::benchmarks
