// SPDX-License-Identifier: MIT
// Small kernels for the simulator's own tests: some right, most with one deliberate mistake.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

// Out of bounds.

kernel void copy_shifted(const device float* from [[buffer(0)]], device float* to [[buffer(1)]],
                         constant int& read_shift [[buffer(2)]],
                         constant int& write_shift [[buffer(3)]],
                         uint i [[thread_position_in_grid]]) {
  to[int(i) + write_shift] = from[int(i) + read_shift];
}

kernel void read_past_threadgroup_array(device float* out [[buffer(0)]],
                                        uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, values, [64]);
  values[i] = 1;
  out[i] = values[i + 1];
}

kernel void write_past_threadgroup_array(device float* out [[buffer(0)]],
                                         uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, values, [64]);
  values[i + 1] = 1;
  out[i] = 1;
}

kernel void store_to_constant(constant float& value [[buffer(0)]],
                              uint i [[thread_position_in_threadgroup]]) {
  value = float(i);
}

kernel void load_through_null(device float* out [[buffer(0)]],
                              uint i [[thread_position_in_threadgroup]]) {
  const device float* nowhere = nullptr;
  out[i] = nowhere[i];
}

float program_scope_variable;

kernel void store_program_scope(device float* out [[buffer(0)]],
                                uint i [[thread_position_in_threadgroup]]) {
  program_scope_variable = float(i);
  out[i] = program_scope_variable;
}

kernel void share_private_memory(device float* out [[buffer(0)]],
                                 uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(const volatile float*, address, [1]);
  volatile float mine = float(i);
  if (i == 0) address[0] = &mine;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = i == 1 ? *address[0] : mine;
}

// Races. kFlags is what the barrier between a write and a read orders.

template <mem_flags kFlags>
kernel void exchange_in_threadgroup(device float* out [[buffer(0)]],
                                    uint i [[thread_position_in_threadgroup]],
                                    uint n [[threads_per_threadgroup]]) {
  TG_ARRAY(float, values, [1024]);
  values[i] = float(i);
  threadgroup_barrier(kFlags);
  out[i] = values[n - 1 - i];
}

template <mem_flags kFlags>
kernel void exchange_in_simdgroup(device float* out [[buffer(0)]],
                                  uint i [[thread_position_in_threadgroup]],
                                  uint lane [[thread_index_in_simdgroup]]) {
  TG_ARRAY(float, values, [1024]);
  values[i] = float(i);
  simdgroup_barrier(kFlags);
  out[i] = values[i - lane + (31 - lane)];
}

// A barrier of the SIMD group orders nothing between SIMD groups.
kernel void read_behind_simdgroup_barrier(device float* out [[buffer(0)]],
                                          uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, values, [1024]);
  values[i] = float(i);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = values[31 - i % 32];
}

kernel void write_twice_in_threadgroup(device float* out [[buffer(0)]],
                                       uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, value, [1]);
  value[0] = float(i);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = value[0];
}

kernel void write_after_read_in_threadgroup(device float* out [[buffer(0)]],
                                            uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, value, [1]);
  if (i == 0) value[0] = 1;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = value[0];
  if (i == 63) value[0] = 2;
}

// All read, then one lane writes although only its own SIMD group has met: the reader to convict is
// in the other group, among 32 of its own.
kernel void write_after_read_elsewhere(device float* out [[buffer(0)]],
                                       uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, value, [1]);
  if (i == 0) value[0] = 1;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = value[0];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 63) value[0] = 2;
}

// Neighbouring halves belong to different lanes: no race, though they share a word.
kernel void write_neighbouring_halves(device half* out [[buffer(0)]],
                                      uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(half, values, [1024]);
  values[i] = half(i);
  out[i] = values[i];
}

kernel void write_neighbouring_bytes(device uchar* out [[buffer(0)]],
                                     uint i [[thread_position_in_grid]]) {
  out[i] = uchar(i);
}

template <mem_flags kFlags>
kernel void exchange_in_device(device float* scratch [[buffer(0)]], device float* out [[buffer(1)]],
                               uint i [[thread_position_in_threadgroup]],
                               uint n [[threads_per_threadgroup]]) {
  scratch[i] = float(i);
  threadgroup_barrier(kFlags);
  out[i] = scratch[n - 1 - i];
}

kernel void threadgroups_write_one_place(device float* out [[buffer(0)]],
                                         uint i [[thread_position_in_threadgroup]]) {
  out[i] = 1;
}

// Each threadgroup reads what its neighbour writes.
kernel void threadgroups_read_each_other(device float* out [[buffer(0)]],
                                         uint group [[threadgroup_position_in_grid]],
                                         uint groups [[threadgroups_per_grid]],
                                         uint i [[thread_position_in_threadgroup]]) {
  if (i != 0) return;
  const float seen = out[(group + 1) % groups];
  out[group] = seen + 1;
}

kernel void fill(device float* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  out[i] = float(i);
}

kernel void add_one(const device float* in [[buffer(0)]], device float* out [[buffer(1)]],
                    uint i [[thread_position_in_grid]]) {
  out[i] = in[i] + 1;
}

kernel void increment(device float* values [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  values[i] += 1;
}

// Uninitialised memory.

kernel void read_unwritten_threadgroup(device float* out [[buffer(0)]],
                                       uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, values, [64]);
  if (i != 5) values[i] = 1;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = values[63 - i];
}

kernel void use_unset_matrix(device float* out [[buffer(0)]],
                             uint i [[thread_position_in_threadgroup]]) {
  simdgroup_float8x8 matrix;
  out[i] = matrix.thread_elements()[1];
}

// Divergence.

kernel void two_shuffles(device float* out [[buffer(0)]],
                         uint i [[thread_position_in_threadgroup]]) {
  out[i] = i < 16 ? simd_shuffle_xor(1.0f, ushort(1)) : simd_sum(1.0f);
}

kernel void same_shuffle_twice(device float* out [[buffer(0)]],
                               uint i [[thread_position_in_threadgroup]]) {
  if (i < 16)
    out[i] = simd_sum(1.0f);
  else
    out[i] = simd_sum(1.0f);
}

kernel void leave_early(device float* out [[buffer(0)]],
                        uint i [[thread_position_in_threadgroup]]) {
  if (i < 3) out[i] = simd_max(1.0f);
}

kernel void half_at_barrier(device float* out [[buffer(0)]],
                            uint i [[thread_position_in_threadgroup]]) {
  if (i < 32) threadgroup_barrier(mem_flags::mem_none);
  out[i] = 1;
}

kernel void some_lanes_load_matrix(const device float* in [[buffer(0)]],
                                   device float* out [[buffer(1)]],
                                   uint i [[thread_position_in_threadgroup]]) {
  simdgroup_float8x8 matrix(1.0f);
  if (i < 7) simdgroup_load(matrix, in, 8);
  simdgroup_barrier(mem_flags::mem_none);
  out[i] = matrix.thread_elements()[0];
}

kernel void shuffle_from(device float* out [[buffer(0)]], constant int& lane [[buffer(1)]],
                         uint i [[thread_position_in_threadgroup]]) {
  out[i] = simd_shuffle(float(i), ushort(lane));
}

kernel void multiply_identity(device float* out [[buffer(0)]],
                              uint i [[thread_position_in_threadgroup]]) {
  simdgroup_float8x8 one(1.0f), result;
  simdgroup_multiply(result, one, one);
  out[i] = result.thread_elements()[0];
}

// Limits.

kernel void large_threadgroup_memory(device float* out [[buffer(0)]],
                                     constant int& wants_more [[buffer(1)]],
                                     uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, first, [8192]);
  first[i] = 1;
  if (wants_more) {
    TG_ARRAY(half, second, [1]);
    second[0] = 1;
  }
  out[i] = first[i];
}

[[kernel, max_total_threads_per_threadgroup(64)]] void limited_threads(
    device float* out [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  out[i] = 1;
}

struct FourFloats {
  float values[4];
};

kernel void sum_parameters(constant FourFloats& params [[buffer(0)]],
                           device float* out [[buffer(1)]],
                           uint i [[thread_position_in_threadgroup]]) {
  out[i] = params.values[0] + params.values[3];
}

// Execution.

constant bool doubles [[function_constant(7)]];
constant float factor_constant [[function_constant(8)]];

kernel void scale_by_constants(device float* out [[buffer(0)]],
                               uint i [[thread_position_in_threadgroup]]) {
  out[i] = float(i) * (is_function_constant_defined(factor_constant) ? factor_constant : 1.0f);
  if (doubles) out[i] *= 2;
}

// What rewrite.py makes of [[threadgroup(1)]].
kernel void use_threadgroup_argument(device float* out [[buffer(0)]],
                                     threadgroup float* values [[threadgroup_argument(1)]],
                                     uint i [[thread_position_in_threadgroup]],
                                     uint n [[threads_per_threadgroup]]) {
  values[i] = float(i);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = values[n - 1 - i];
}

struct Positions {
  uint values[16];
};

kernel void note_positions(
    device Positions* out [[buffer(0)]], uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]], ushort3 thread_at [[thread_position_in_threadgroup]],
    uint3 size [[threads_per_threadgroup]], uint2 in_grid [[thread_position_in_grid]],
    uint index [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroups [[simdgroups_per_threadgroup]],
    uint2 threads [[threads_per_grid]]) {
  device uint* values = out[in_grid.y * threads.x + in_grid.x].values;
  values[0] = group.x, values[1] = group.y, values[2] = groups.x, values[3] = groups.y;
  values[4] = thread_at.x, values[5] = thread_at.y, values[6] = size.x, values[7] = size.y;
  values[8] = in_grid.x, values[9] = in_grid.y, values[10] = index, values[11] = simdgroup;
  values[12] = lane, values[13] = simdgroups, values[14] = threads.x, values[15] = threads.y;
}

// Known traffic: see the test.
kernel void known_counts(const device float* in [[buffer(0)]], device half* out [[buffer(1)]],
                         uint i [[thread_position_in_threadgroup]]) {
  TG_ARRAY(float, tile, [64]);
  tile[i] = in[i];
  tile[i + 32] = in[i + 32];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 matrix;
  simdgroup_load(matrix, tile, 8);
  simdgroup_multiply_accumulate(matrix, matrix, matrix, matrix);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_store(matrix, tile, 8);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sum = simd_sum(tile[i]) + simd_shuffle_xor(tile[i + 32], ushort(1));
  sum += exp(sum) + fast::exp2(sum);
  out[i] = half(sum);
}

kernel void sum_over_lanes(device float* out [[buffer(0)]], device int* maxima [[buffer(1)]],
                           uint i [[thread_position_in_threadgroup]]) {
  out[i] = simd_sum(float(i)) + simd_shuffle_down(float(i), ushort(1)) +
           simd_shuffle_up(float(i), ushort(1)) + simd_prefix_inclusive_sum(float(i));
  maxima[i] = simd_max(int(i)) * 100 + simd_min(int(i)) + (simd_any(i == 3) ? 10 : 0) +
              (simd_all(i < 31) ? 1000 : 0);
}

kernel void transpose_matrix(const device half* in [[buffer(0)]], device half* out [[buffer(1)]]) {
  simdgroup_half8x8 matrix;
  simdgroup_load(matrix, in, 16, ulong2(3, 2), true);
  simdgroup_store(matrix, out, 8);
}
