// SPDX-License-Identifier: MIT
// Kernels for the simulator's own tests: matrices that lanes load together, votes, quads, atomics,
// swizzles. Some are right, some have one deliberate mistake.
#include <metal_atomic>
#include <metal_quadgroup>
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

// Matrix loads and stores.

// Lanes that ask for different matrices.
kernel void load_two_matrices(const device float* in [[buffer(0)]], device float* out [[buffer(1)]],
                              constant int& apart [[buffer(2)]],
                              uint i [[thread_position_in_threadgroup]]) {
  simdgroup_float8x8 matrix;
  simdgroup_load(matrix, in + (i < 16 ? 0 : apart), 8);
  out[i] = matrix.thread_elements()[0];
}

kernel void store_two_shapes(device float* out [[buffer(0)]], constant int& apart [[buffer(1)]],
                             uint i [[thread_position_in_threadgroup]]) {
  const simdgroup_float8x8 matrix(1.0f);
  simdgroup_store(matrix, out, i == 31 ? 8 + apart : 8);
}

// Loads and stores by a whole SIMD group meet, but order no memory: that takes a barrier.
kernel void store_then_load(device float* out [[buffer(0)]], constant int& in_order [[buffer(1)]],
                            uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, tile, [64]);
  const float diagonal = float(i);
  simdgroup_float8x8 matrix(diagonal);
  simdgroup_store(matrix, tile, 8);
  if (in_order) simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_load(matrix, tile, 8, ulong2(0, 0), true);
  out[i] = matrix.thread_elements()[0];
}

// Votes and quads.

kernel void vote(device uint* out [[buffer(0)]], uint i [[thread_index_in_simdgroup]],
                 uint quad_lane [[thread_index_in_quadgroup]]) {
  const simd_vote third = simd_ballot(i % 3 == 0);
  const quad_vote second = quad_ballot(quad_lane == 1);
  out[i] = uint(simd_vote::vote_t(third)) ^ (third.any() ? 2 : 0) ^ (third.all() ? 4 : 0);
  out[32 + i] = uint(simd_vote::vote_t(simd_active_threads_mask()));
  out[64 + i] = quad_vote::vote_t(second) + (second.all() ? 100 : 0) + (second.any() ? 1000 : 0);
  out[96 + i] = simd_is_first() ? 1 : 0;
}

kernel void use_quads(device int* out [[buffer(0)]], uint i [[thread_index_in_simdgroup]],
                      uint quad [[quadgroup_index_in_threadgroup]]) {
  const int mine = int(i);
  device int* place = out + i * 8;
  place[0] = quad_sum(mine);
  place[1] = quad_max(mine) * 100 + quad_min(mine);
  place[2] = quad_shuffle_xor(mine, ushort(3));
  place[3] = quad_broadcast(mine, ushort(2));
  place[4] = quad_shuffle_up(mine, ushort(1)) * 100 + quad_shuffle_down(mine, ushort(1));
  place[5] = int(quad);
  place[6] = (quad_all(i < 30) ? 1 : 0) + (quad_any(i == 5) ? 2 : 0);
  place[7] =
      simd_shuffle_rotate_down(mine, ushort(3)) * 100 + simd_shuffle_rotate_up(mine, ushort(3));
}

kernel void combine_bits(device uint* out [[buffer(0)]], uint i [[thread_index_in_simdgroup]]) {
  out[i] = simd_and(i | 64) + 1000 * simd_xor(i) + 10000 * simd_or(i);
}

// Atomics.

kernel void count_threads(device atomic_uint* total [[buffer(0)]],
                          device atomic_float* sum [[buffer(1)]],
                          device atomic_int* largest [[buffer(2)]],
                          uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(total, 1, memory_order_relaxed);
  atomic_fetch_add_explicit(sum, 0.5f, memory_order_relaxed);
  atomic_fetch_max_explicit(largest, int(i), memory_order_relaxed);
}

kernel void exchange_atomics(device atomic_uint* values [[buffer(0)]],
                             device uint* out [[buffer(1)]],
                             uint i [[thread_position_in_threadgroup]]) {
  device atomic_uint* mine = values + i;
  atomic_store_explicit(mine, 12, memory_order_relaxed);
  atomic_fetch_sub_explicit(mine, 2, memory_order_relaxed);
  atomic_fetch_or_explicit(mine, 5, memory_order_relaxed);
  atomic_fetch_and_explicit(mine, 7, memory_order_relaxed);
  atomic_fetch_xor_explicit(mine, 1, memory_order_relaxed);
  atomic_fetch_min_explicit(mine, 100, memory_order_relaxed);
  uint expected = 5;
  const bool wrong = atomic_compare_exchange_weak_explicit(
      mine, &expected, 9u, memory_order_relaxed, memory_order_relaxed);
  const bool right = atomic_compare_exchange_weak_explicit(
      mine, &expected, 8u, memory_order_relaxed, memory_order_relaxed);
  out[i] = atomic_exchange_explicit(mine, 3, memory_order_relaxed) * 100 + expected * 10 +
           (right && !wrong ? 1 : 0) + atomic_load_explicit(mine, memory_order_relaxed) * 1000;
}

// A plain access beside atomic ones of others is a race.
kernel void mix_with_plain(device atomic_uint* total [[buffer(0)]], device uint* out [[buffer(1)]],
                           constant int& reads_plainly [[buffer(2)]],
                           uint i [[thread_position_in_threadgroup]]) {
  atomic_fetch_add_explicit(total, 1, memory_order_relaxed);
  out[i] = 0;
  if (i == 5 && reads_plainly) out[i] = *(const device uint*)(total);
}

kernel void count_in_threadgroup(device uint* out [[buffer(0)]],
                                 constant int& has_barrier [[buffer(1)]],
                                 uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(atomic_uint, total, [1]);
  if (i == 0) atomic_store_explicit(total, 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(total, 1, memory_order_relaxed);
  if (has_barrier) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 0) out[0] = *(const threadgroup uint*)(total);
}

kernel void add_past_the_end(device atomic_uint* total [[buffer(0)]],
                             uint i [[thread_position_in_threadgroup]]) {
  atomic_fetch_add_explicit(total + i, 1, memory_order_relaxed);
}

// Swizzles, as rewrite.py writes those that are not members.
kernel void reorder(const device float4* in [[buffer(0)]], device float4* out [[buffer(1)]],
                    uint i [[thread_position_in_grid]]) {
  const float4 v = in[i];
  out[i] = float4(v.template swizzle<3, 1>() * 2.0f, v.xyz.template swizzle<2, 2>() + v.zw);
}
