// SPDX-License-Identifier: MIT
// What an x86-64 build has. Chosen by CMake; its siblings serve Arm and everything else.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sdpa/cpu/instruction_set.h"

namespace sdpa::cpu {
namespace {

bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
}

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/// Where there is AMX, vdpbf16ps runs at a lower rate than two fp32 multiply-adds: 82 against
/// 148 GFLOP/s on Sapphire Rapids.
bool has_amx_bfloat16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 22 & 1u) != 0;
}

/// Tile registers enlarge a process's state, so that Linux wants to be asked before their first
/// use.
bool may_use_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

std::span<const InstructionSet> instruction_sets() {
  static const InstructionSet sets[] = {
      {.name = "avx512_amx",
       .kernels = avx512_amx_kernels(),
       .runs_here = runs_avx512() && __builtin_cpu_supports("avx512bf16") && has_amx_bfloat16() &&
                    may_use_amx(),
       .is_preferred = true},
      {.name = "avx512_bf16",
       .kernels = avx512_bf16_kernels(),
       .runs_here = runs_avx512() && __builtin_cpu_supports("avx512bf16"),
       .is_preferred = !has_amx_bfloat16()},
      {.name = "avx512",
       .kernels = avx512_kernels(),
       .runs_here = runs_avx512(),
       .is_preferred = true},
      {.name = "avx2", .kernels = avx2_kernels(), .runs_here = runs_avx2(), .is_preferred = true},
      {.name = "portable", .kernels = portable_kernels(), .runs_here = true, .is_preferred = true},
  };
  return sets;
}

}  // namespace sdpa::cpu
