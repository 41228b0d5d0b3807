// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "sdpa/cpu/backward_job.h"
#include "sdpa/problem.h"

namespace sdpa::cpu {

/// What a plan has to know about a set of kernels.
struct KernelShape {
  int block_lanes = 0;              ///< queries side by side in a block
  bool has_bfloat16_tiles = false;  ///< products of bfloat16 tiles
  bool has_bfloat16_dot = false;    ///< products of bfloat16 pairs without conversion
};

/// Loops of independent multiply-adds on one thread; they return how many operations they did.
struct SpinLoops {
  double (*float32)(std::int64_t rounds) = nullptr;
  double (*bfloat16)(std::int64_t rounds) = nullptr;  ///< nullptr without a dot product of pairs
};

/// What one translation unit compiles for its instruction set.
struct Kernels {
  void (*forward)(const Problem& problem, const ForwardTensors& tensors);
  BackwardKernels backward;
  KernelShape shape;
  SpinLoops spin;
};

/// Kernels, their name, and where they run.
struct InstructionSet {
  std::string_view name;
  Kernels kernels;
  bool runs_here;
  bool is_preferred;  ///< false where it runs but a later one is faster
};

/// What this build has for this kind of processor, fastest first; "portable" is always last.
std::span<const InstructionSet> instruction_sets();

/// The one in use: what set_instruction_set said, else the environment's MPS_SDPA_ISA, else the
/// first that is preferred here. Throws std::invalid_argument where the environment names none that
/// does.
const InstructionSet& instruction_set();

/// Forces one by name; "" returns to the choice by environment and processor. Throws
/// std::invalid_argument where this build or this processor does not have it.
void set_instruction_set(std::string_view name);

/// One translation unit each, compiled with the flags of its set.
Kernels avx512_amx_kernels();
Kernels avx512_bf16_kernels();
Kernels avx512_kernels();
Kernels avx2_kernels();
Kernels neon_bf16_kernels();
Kernels neon_kernels();
Kernels portable_kernels();

}  // namespace sdpa::cpu
