// SPDX-License-Identifier: MIT
#include "sdpa/cpu/amx_forward.h"
#include "sdpa/cpu/kernels.h"
#include "sdpa/cpu/simd_avx512.h"

namespace sdpa::cpu {
namespace {

/// AVX-512 in blocks of 32 lanes, as AMX products have them.
struct Amx : Avx512 {
  static constexpr int kColumns = 2;
};

void forward(const Problem& problem, const ForwardTensors& tensors) {
  if (problem.dtype == DType::kBFloat16 && AmxForward<Amx>(problem, tensors).run()) return;
  avx512_kernels().forward(problem, tensors);
}

}  // namespace

Kernels avx512_amx_kernels() {
  Kernels kernels = avx512_kernels();
  kernels.forward = forward;
  return kernels;
}

}  // namespace sdpa::cpu
