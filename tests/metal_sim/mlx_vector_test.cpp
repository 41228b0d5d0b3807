// SPDX-License-Identifier: MIT
// MLX's attention for few queries, in one pass and in two, agrees with the oracle.
#include "mlx_attention.h"
#include "run_kernel.h"

namespace sim {
namespace {

using sdpa::Causal;
using sdpa::DType;
using sdpa::cases::Case;

void expect_right_in_one_pass(const Case& spec, uint64_t seed) {
  Attention call(spec);
  expect_none(call.failures(run_vector(call, seed), Attention::Lse::kAbsent));
}

void expect_right_in_two_passes(const Case& spec, const char* first_kernel, uint64_t seed) {
  Attention call(spec);
  expect_none(
      call.failures(run_split_vector(call, first_kernel, 32, seed), Attention::Lse::kAbsent));
}

Case one_query(DType dtype, int64_t kv_len, int64_t group) {
  const int64_t dim = dtype == DType::kFloat32 ? 64 : 128;
  return {.dtype = dtype,
          .batch = 2,
          .q_heads = 2 * group,
          .kv_heads = 2,
          .q_len = 1,
          .kv_len = kv_len,
          .qk_dim = dim,
          .v_dim = dim};
}

TEST(MlxVector, OnePass) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (int64_t kv_len : {100, 513}) expect_right_in_one_pass(one_query(dtype, kv_len, 4), 1);
}

TEST(MlxVector, OnePassWithMasks) {
  Case spec = one_query(DType::kFloat32, 200, 1);
  spec.mask = {.shape = sdpa::cases::MaskShape::kPerHead};
  expect_right_in_one_pass(spec, 0);
  spec.mask = {.shape = sdpa::cases::MaskShape::kPerHead,
               .dtype = DType::kFloat32,
               .pattern = sdpa::cases::MaskPattern::kSoft};
  expect_right_in_one_pass(spec, 2);
}

TEST(MlxVector, OnePassWithSinks) {
  Case spec = one_query(DType::kFloat32, 77, 2);
  spec.sinks = true;
  expect_right_in_one_pass(spec, 1);
}

TEST(MlxVector, TwoPasses) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    expect_right_in_two_passes(one_query(dtype, 1000, 2), "vector_first_", 1);
}

TEST(MlxVector, TwoPassesCausal) {
  Case spec = one_query(DType::kFloat32, 700, 4);
  spec.q_len = 5;
  spec.causal = Causal::kLowerRight;
  expect_right_in_two_passes(spec, "vector_first_", 3);
}

TEST(MlxVector, TwoPassesForEightHeadsAGroup) {
  expect_right_in_two_passes(one_query(DType::kFloat32, 1500, 8), "vector_first_of_8_", 1);
  expect_right_in_two_passes(one_query(DType::kBFloat16, 1500, 8), "vector_first_of_8_", 1);
}

}  // namespace
}  // namespace sim
