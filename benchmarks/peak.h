// SPDX-License-Identifier: MIT
#pragma once

// What the processor can do at best, measured in the same run as the kernels: multiply-adds on
// registers alone, and reads of memory far larger than the caches.

#include <cstdint>

namespace sdpa::benchmarks {

/// Floating-point operations `iterations` rounds of independent multiply-adds take, on one thread.
using Spin = double (*)(std::int64_t iterations);

struct Peak {
  Spin float32;
  Spin bfloat16;  ///< nullptr without a dot product of pairs
};

Peak avx512_bf16_peak();
Peak avx512_peak();
Peak avx2_peak();
Peak portable_peak();

/// GFLOP/s of `spin` on all threads that parallel_for uses.
double gflops(Spin spin);

/// GB/s that all threads together read.
double read_bandwidth();

}  // namespace sdpa::benchmarks
