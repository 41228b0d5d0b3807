// SPDX-License-Identifier: MIT
// A small flash attention, to try the simulator on: what a kernel looks like that is both MSL and
// C++. One SIMD group a threadgroup, 8 query rows, 16 keys a step, head size 64.
//
// Grid (q_len / 8, heads), threadgroup (32). Layout (heads, length, 64); q_len is a multiple of 8,
// kv_len of 16. kBroken = n leaves out the n-th barrier: the checks must notice.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

#ifndef TG_ARRAY
#define TG_ARRAY(T, name, dims) threadgroup T name dims
#endif

struct FlashExampleParams {
  int q_len, kv_len;
  float scale;
};

template <int kBroken, int kNumber>
METAL_FUNC void barrier() {
  if (kBroken != kNumber) threadgroup_barrier(mem_flags::mem_threadgroup);
}

template <typename T, int kBroken = 0>
[[kernel]] void flash_example(const device T* q [[buffer(0)]], const device T* k [[buffer(1)]],
                              const device T* v [[buffer(2)]], device float* o [[buffer(3)]],
                              constant FlashExampleParams& params [[buffer(4)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kDim = 64, kKeys = 16, kRows = 8;
  TG_ARRAY(float, scores, [kRows][kKeys]);
  TG_ARRAY(float, factor, [kRows][kRows]);  // a diagonal matrix: how much old output shrinks
  q += (group.y * params.q_len + group.x * kRows) * kDim;
  o += (group.y * params.q_len + group.x * kRows) * kDim;
  k += group.y * params.kv_len * kDim;
  v += group.y * params.kv_len * kDim;

  simdgroup_matrix<T, 8, 8> q_tile[kDim / 8];
  simdgroup_float8x8 o_tile[kDim / 8];
  for (int d = 0; d < kDim / 8; d++) {
    simdgroup_load(q_tile[d], q + d * 8, kDim);
    o_tile[d] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  // Softmax: four lanes a row, four keys a lane.
  const int row = lane / 4, first = lane % 4 * (kKeys / 4);
  for (int c = lane % 4 * 2; c < int(lane % 4 * 2 + 2); c++) factor[row][c] = 0;
  float row_max = -INFINITY, row_sum = 0;
  for (int key = 0; key < params.kv_len; key += kKeys) {
    for (int j = 0; j < kKeys / 8; j++) {
      simdgroup_float8x8 s = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      for (int d = 0; d < kDim / 8; d++) {
        simdgroup_matrix<T, 8, 8> k_tile;
        simdgroup_load(k_tile, k + (key + j * 8) * kDim + d * 8, kDim, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(s, q_tile[d], k_tile, s);
      }
      simdgroup_store(s, &scores[0][j * 8], kKeys);
    }
    barrier<kBroken, 1>();
    float new_max = row_max, sum = 0;
    for (int c = first; c < first + kKeys / 4; c++)
      new_max = max(new_max, scores[row][c] * params.scale);
    new_max = max(new_max, simd_shuffle_xor(new_max, ushort(1)));
    new_max = max(new_max, simd_shuffle_xor(new_max, ushort(2)));
    for (int c = first; c < first + kKeys / 4; c++)
      sum += scores[row][c] = fast::exp(scores[row][c] * params.scale - new_max);
    sum += simd_shuffle_xor(sum, ushort(1));
    sum += simd_shuffle_xor(sum, ushort(2));
    const float shrink = fast::exp(row_max - new_max);
    row_sum = row_sum * shrink + sum;
    row_max = new_max;
    if (lane % 4 == 0) factor[row][row] = shrink;
    barrier<kBroken, 2>();
    simdgroup_float8x8 factor_tile, p_tile[kKeys / 8];
    simdgroup_load(factor_tile, &factor[0][0], 8);
    for (int j = 0; j < kKeys / 8; j++) simdgroup_load(p_tile[j], &scores[0][j * 8], kKeys);
    for (int d = 0; d < kDim / 8; d++) {
      simdgroup_multiply(o_tile[d], factor_tile, o_tile[d]);
      for (int j = 0; j < kKeys / 8; j++) {
        simdgroup_matrix<T, 8, 8> v_tile;
        simdgroup_load(v_tile, v + (key + j * 8) * kDim + d * 8, kDim);
        simdgroup_multiply_accumulate(o_tile[d], p_tile[j], v_tile, o_tile[d]);
      }
    }
    barrier<kBroken, 3>();
  }
  if (lane % 4 == 0) factor[row][row] = 1 / row_sum;
  barrier<kBroken, 4>();
  simdgroup_float8x8 inverse;
  simdgroup_load(inverse, &factor[0][0], 8);
  for (int d = 0; d < kDim / 8; d++) {
    simdgroup_multiply(o_tile[d], inverse, o_tile[d]);
    simdgroup_store(o_tile[d], o + d * 8, kDim);
  }
}
