// SPDX-License-Identifier: MIT
#pragma once

// What the processor can do at best, so that times become shares of it: multiply-adds on registers
// alone, and reads of memory far larger than the caches.

namespace sdpa::cpu {

struct Peaks {
  double float32 = 0;    ///< floating-point operations a second
  double bfloat16 = 0;   ///< the same of a dot product of pairs; 0 where there is none
  double bandwidth = 0;  ///< bytes read a second
};

/// Of the instruction set in use and on all threads that parallel_for uses. Takes about 0.4 s.
Peaks measure_peaks();

}  // namespace sdpa::cpu
