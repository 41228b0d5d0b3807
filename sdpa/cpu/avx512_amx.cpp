// SPDX-License-Identifier: MIT
#include "sdpa/cpu/amx_backward.h"
#include "sdpa/cpu/amx_decode.h"
#include "sdpa/cpu/amx_forward.h"
#include "sdpa/cpu/kernels.h"
#include "sdpa/cpu/simd_avx512.h"

namespace sdpa::cpu {
namespace {

/// AVX-512 in blocks of 32 lanes, as AMX products have them.
struct Amx : Avx512 {
  static constexpr int kColumns = 2;
};

KernelShape shape() {
  KernelShape shape = shape_of<Avx512>();
  shape.has_bfloat16_tiles = true;
  return shape;
}

/// Fewer rows than this, but for one, are decoded as fast on vectors: products of tiles are of 16
/// rows in any case.
constexpr std::int64_t kMinTileRows = 5;

/// False where another kernel is to do it.
bool forward_tiles(const Problem& problem, const ForwardTensors& tensors) {
  if (problem.dtype != DType::kBFloat16 || problem.kv_len < kMinTileKeys) return false;
  if (!is_decode(problem, shape())) return AmxForward<Amx, AmxTiles>(problem, tensors).run();
  const std::int64_t rows = problem.q_len * problem.group();
  if (rows > 1 && rows < kMinTileRows) return false;
  decode_with_tiles<AmxTiles>(problem, tensors);
  return true;
}

void forward(const Problem& problem, const ForwardTensors& tensors) {
  if (!forward_tiles(problem, tensors)) avx512_kernels().forward(problem, tensors);
}

void run_part(const BackwardTask& task) {
  if (may_round_weights(*task.job->problem) && AmxBackward<Amx, AmxTiles>(task).run()) return;
  avx512_kernels().backward.run_part(task);
}

/// A part that is not finite goes to the other kernel, in the same memory.
std::int64_t own_floats(const Problem& problem, std::int64_t unit_rows) {
  const std::int64_t other = avx512_kernels().backward.own_floats(problem, unit_rows);
  if (!may_round_weights(problem)) return other;
  const std::int64_t own = AmxBackward<Amx, AmxTiles>::floats(problem, unit_rows);
  return own > other ? own : other;
}

/// Four independent products of tiles a round.
double spin_tiles(std::int64_t rounds) {
  const TileRegisters configured;
  alignas(64) const BFloat16 zeros[kTileSize] = {};
  finish_stores();
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  for (std::int64_t n = 0; n < rounds; ++n) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  return static_cast<double>(rounds) * 4 * 2 * kTileRows * kTileRows * kTileDepth;
}

}  // namespace

Kernels avx512_amx_kernels() {
  Kernels kernels = avx512_kernels();
  kernels.forward = forward;
  kernels.shape = shape();
  kernels.backward.run_part = run_part;
  kernels.backward.own_floats = own_floats;
  kernels.spin.bfloat16 = spin_tiles;
  return kernels;
}

}  // namespace sdpa::cpu
