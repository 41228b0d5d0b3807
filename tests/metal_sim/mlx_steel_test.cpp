// SPDX-License-Identifier: MIT
// MLX's tiled attention, launched as MLX launches it, agrees with the oracle.
#include "mlx_attention.h"
#include "run_kernel.h"

namespace sim {
namespace {

using sdpa::Causal;
using sdpa::DType;
using sdpa::cases::Case;

void expect_right(const Case& spec, const SteelShape& shape = {}) {
  // MLX writes the log-sum-exp densely, whatever the output's strides.
  const bool is_dense = spec.layout == sdpa::cases::Layout::kContiguous;
  for (uint64_t seed : {0, 1}) {
    Attention call(spec);
    expect_none(call.failures(run_steel(call, shape, seed),
                              is_dense ? Attention::Lse::kWritten : Attention::Lse::kAbsent));
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
