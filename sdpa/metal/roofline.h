// SPDX-License-Identifier: MIT
#pragma once

// How long a plan would take on a chip, by arithmetic: what the kernels do, counted, over what the
// chip can do, published. No clock was involved; whoever prints a figure of this file says that it
// is an estimate. The simulator confirms the counts (tests/metal_kernels/roofline_test.cpp).

#include <span>
#include <string>
#include <string_view>

#include "sdpa/metal/plan.h"

namespace sdpa::metal {

/// An Apple GPU by published figures. Where sources disagree (clocks of M3 and M4 by 15 %), the
/// lower one.
struct Chip {
  std::string_view name;  ///< "m4", "m3-max"
  int family;
  int cores;
  double teraflops;             ///< float32, a multiply-add counted as two
  double gigabytes_per_second;  ///< of memory
  bool is_scaled = false;       ///< no peak is published: the base chip's by the number of cores
};

/// M1 to M5, oldest first.
std::span<const Chip> chips();

/// By name, whatever its case, with "-", "_" or a space. Throws std::invalid_argument naming the
/// known ones.
const Chip& chip_named(std::string_view name);

/// What a plan for this chip depends on.
DeviceInfo device_of(const Chip& chip);

/// What one launch does. A mask is taken to hide nothing.
struct Work {
  double matrix_multiplies = 0;   ///< 8x8x8, one for a SIMD group
  double exponentials = 0;        ///< one for a lane
  double shuffles = 0;            ///< one for a SIMD group
  double barriers = 0;            ///< one for a threadgroup
  double plain_instructions = 0;  ///< one for a lane: what is done to scores beside products
  double dropout_blocks = 0;      ///< of four random words
  double memory_bytes = 0;        ///< each tensor once: what several rows share is in a cache
  double simd_groups = 0;         ///< launched
};

Work work_of(const Problem& problem, const Plan& plan, const Dispatch& dispatch);

/// The least time, and whether memory takes it or arithmetic does.
struct Estimate {
  double milliseconds = 0;
  bool waits_for_memory = false;
};

Estimate estimate(const Work& work, const Chip& chip);

/// Milliseconds of all launches of a plan, one after another.
double estimate_ms(const Problem& problem, const Plan& plan, const Chip& chip);

/// For people: a line a launch and a sum, each of which says that it is an estimate.
std::string explain_estimate(const Problem& problem, const Plan& plan, const Chip& chip);

}  // namespace sdpa::metal
