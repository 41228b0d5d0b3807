// SPDX-License-Identifier: MIT
// MLX's tiled attention, launched as MLX launches it, agrees with the oracle.
#include "attention_arguments.h"

namespace sim {
namespace {

using sdpa::Causal;
using sdpa::DType;
using sdpa::cases::Case;

// MLX's AttnParams.
struct Params {
  int batch, heads, dim, q_len, kv_len, group;
  float scale;
  int q_blocks, kv_blocks, whole_q_blocks, whole_kv_blocks, q_rest, kv_rest, q_offset;
  int64_t q_strides[3], k_strides[3], v_strides[3], o_strides[3];
};

struct MaskParams {
  int64_t strides[3];
};

void copy_strides(const sdpa::TensorView& view, int64_t (&strides)[3]) {
  for (size_t i = 0; i < 3; i++) strides[i] = view.strides[i];
}

// The instantiation, and the block sizes that it stands for.
struct Shape {
  int keys, columns;
};

// With two columns both SIMD groups of a row store its log-sum-exp: a race, of equal values.
Options::Races device_races(const Shape& shape) {
  return shape.columns == 1 ? Options::Races::kCheck : Options::Races::kIgnore;
}

Params make_params(const Attention& call, int rows, int keys) {
  const sdpa::Problem& p = call.problem;
  Params params{.batch = int(p.batch),
                .heads = int(p.q_heads),
                .dim = int(p.qk_dim),
                .q_len = int(p.q_len),
                .kv_len = int(p.kv_len),
                .group = int(p.group()),
                .scale = float(p.scale),
                .q_blocks = divide_up(p.q_len, rows),
                .kv_blocks = divide_up(p.kv_len, keys),
                .whole_q_blocks = int(p.q_len / rows),
                .whole_kv_blocks = int(p.kv_len / keys),
                .q_rest = int(p.q_len % rows),
                .kv_rest = int(p.kv_len % keys),
                .q_offset = int(p.kv_len - p.q_len),
                .q_strides = {},
                .k_strides = {},
                .v_strides = {},
                .o_strides = {}};
  copy_strides(call.tensors.query, params.q_strides);
  copy_strides(call.tensors.key, params.k_strides);
  copy_strides(call.tensors.value, params.v_strides);
  copy_strides(call.tensors.out, params.o_strides);
  return params;
}

Result run_steel(Attention& call, const Shape& shape, uint64_t seed) {
  constexpr int kRows = 32;
  const sdpa::Problem& p = call.problem;
  const Params params = make_params(call, kRows, shape.keys);
  MaskParams mask_params{};
  const bool has_mask = p.mask != sdpa::MaskKind::kNone, yes = true;
  const bool causal = p.causal != Causal::kNone, sinks = p.has_sinks;
  const bool whole_q = !params.q_rest, whole_kv = !params.kv_rest;
  const sdpa::ForwardTensors& t = call.tensors;
  std::vector<Binding> bindings = {view_buffer(0, t.query), view_buffer(1, t.key),
                                   view_buffer(2, t.value), view_buffer(3, t.out),
                                   bytes(4, params),        view_buffer(8, t.lse)};
  if (has_mask) {
    copy_strides(t.mask, mask_params.strides);
    bindings.push_back(bytes(5, mask_params));
    bindings.push_back(view_buffer(6, t.mask));
  }
  if (sinks) bindings.push_back(view_buffer(7, t.sinks));
  const bool added = p.mask == sdpa::MaskKind::kAdditive;
  return run(
      {.function = "steel_" + msl_name(p.dtype) + "_d" + std::to_string(p.qk_dim) + "_wn" +
                   std::to_string(shape.columns) + "_mask_" + (added ? msl_name(p.dtype) : "bool"),
       .bindings = bindings,
       .constants = {{200, &whole_q, 1},
                     {201, &whole_kv, 1},
                     {300, &has_mask, 1},
                     {301, &causal, 1},
                     {302, &sinks, 1},
                     {303, &yes, 1}},
       .grid = {unsigned(params.q_blocks), unsigned(p.q_heads), unsigned(p.batch)},
       .group = {32, 4, unsigned(shape.columns)}},
      {.seed = seed, .device_races = device_races(shape)});
}

void expect_right(const Case& spec, const Shape& shape = {32, 1}) {
  // MLX writes the log-sum-exp densely, whatever the output's strides.
  const bool is_dense = spec.layout == sdpa::cases::Layout::kContiguous;
  for (uint64_t seed : {0, 1}) {
    Attention call(spec);
    call.check(run_steel(call, shape, seed),
               is_dense ? Attention::Lse::kWritten : Attention::Lse::kAbsent);
  }
}

Case ragged(DType dtype, int64_t dim = 64) {
  return {.dtype = dtype,
          .batch = 2,
          .q_heads = 4,
          .kv_heads = 2,
          .q_len = 77,
          .kv_len = 139,
          .qk_dim = dim,
          .v_dim = dim};
}

TEST(MlxSteel, WholeBlocks) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    Case spec = ragged(dtype);
    spec.q_len = 64;
    spec.kv_len = 128;
    expect_right(spec);
  }
}

TEST(MlxSteel, RaggedBlocks) {
  expect_right(ragged(DType::kFloat32));
  expect_right(ragged(DType::kFloat16, 128), {16, 1});
  expect_right(ragged(DType::kBFloat16, 96));
}

TEST(MlxSteel, Causal) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    Case spec = ragged(dtype);
    spec.causal = Causal::kLowerRight;
    expect_right(spec);
  }
}

TEST(MlxSteel, Masks) {
  Case spec = ragged(DType::kFloat16);
  spec.mask = {.shape = sdpa::cases::MaskShape::kPerHead};
  expect_right(spec);
  spec.causal = Causal::kLowerRight;
  spec.mask = {.shape = sdpa::cases::MaskShape::kMatrix,
               .dtype = DType::kFloat16,
               .pattern = sdpa::cases::MaskPattern::kSoft};
  expect_right(spec);
}

TEST(MlxSteel, Sinks) {
  Case spec = ragged(DType::kFloat32);
  spec.sinks = true;
  expect_right(spec);
}

TEST(MlxSteel, TwoSimdgroupsARow) { expect_right(ragged(DType::kFloat32), {32, 2}); }

TEST(MlxSteel, StridedTensors) {
  Case spec = ragged(DType::kBFloat16);
  spec.layout = sdpa::cases::Layout::kTransposed;
  expect_right(spec);
}

TEST(MlxSteel, CountsAreThoseOfItsTiles) {
  // 8 row blocks of 8 key blocks: 64 pairs of 32 x 32 scores at dim 64.
  Case spec{.q_len = 256, .kv_len = 256, .qk_dim = 64, .v_dim = 64};
  Attention call(spec);
  const Counters counters = run_steel(call, {32, 1}, 0).counters;
  EXPECT_EQ(counters.matrix_multiplies, 64u * 4 * (4 * 8 + 4 * 8));
  EXPECT_EQ(counters.threadgroup_barriers, 8u * (8 * 4 + 2));
  EXPECT_EQ(counters.threadgroup_memory, 17920u);
  EXPECT_EQ(counters.device_bytes_read, 8u * 32 * 64 * 4 + 64u * 2 * 32 * 64 * 4);
}

}  // namespace
}  // namespace sim
