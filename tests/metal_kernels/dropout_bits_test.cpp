// SPDX-License-Identifier: MIT
//
// Which probabilities the Metal kernels keep is what reference::is_kept says, bit for bit, in every
// kernel that drops. The inputs are unit matrices, so that results show single probabilities.
#include <gtest/gtest.h>

#include "sdpa/element.h"
#include "sdpa/reference.h"
#include "tests/case_data.h"
#include "tests/metal_kernels/simulated_metal.h"

namespace sdpa::metal {
namespace {

constexpr std::int64_t kSize = 72;  ///< queries, keys and dimensions alike

void fill(const TensorView& view, double diagonal, double elsewhere) {
  for (std::int64_t b = 0; b < view.shape[0]; ++b)
    for (std::int64_t h = 0; h < view.shape[1]; ++h)
      for (std::int64_t r = 0; r < view.shape[2]; ++r)
        for (std::int64_t c = 0; c < view.shape[3]; ++c)
          write(view, b, h, r, c, r == c ? diagonal : elsewhere);
}

cases::CaseData unit_matrices(DType dtype) {
  cases::CaseData data({.dtype = dtype,
                        .batch = 2,
                        .q_heads = 2,
                        .kv_heads = 2,
                        .q_len = kSize,
                        .kv_len = kSize,
                        .qk_dim = kSize,
                        .v_dim = kSize,
                        .dropout = 0.4},
                       99);
  fill(data.query.view(), 1, 0);
  fill(data.key.view(), 1, 0);
  return data;
}

/// Counts the pairs whose element of `result`, at (query, key) or turned, does not say what
/// is_kept says: more than zero for those that are kept.
int disagreements(const cases::CaseData& data, const TensorView& result, bool is_turned) {
  int count = 0;
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t h = 0; h < 2; ++h)
      for (std::int64_t query = 0; query < kSize; ++query)
        for (std::int64_t key = 0; key < kSize; ++key) {
          const double value =
              is_turned ? read(result, b, h, key, query) : read(result, b, h, query, key);
          const bool kept = reference::is_kept(data.problem.dropout, b * 2 + h, query, key);
          count += (value > 0) != kept;
        }
  return count;
}

class DropoutBits : public testing::TestWithParam<DType> {};

/// out = P V and dV = P^T dO are zero where a probability was dropped.
TEST_P(DropoutBits, OfProbabilities) {
  cases::CaseData data = unit_matrices(GetParam());
  fill(data.value.view(), 1, 0);
  fill(data.grad_out.view(), 1, 0);
  for (ForwardPlan plan : {ForwardPlan::kProto, ForwardPlan::kDecode, ForwardPlan::kTiles})
    for (int family : {7, 9}) {
      const SimulatedMetal backend({.family = family}, {.seed = 1}, plan);
      data.reset_outputs();
      backend.forward(data.problem, data.forward_tensors());
      EXPECT_EQ(disagreements(data, data.out.view(), false), 0);
      backend.backward(data.problem, data.backward_tensors());
      EXPECT_EQ(disagreements(data, data.grad_value.view(), true), 0);
    }
}

/// With dP = 1 everywhere dS is P (1/(1-p) - delta) where a probability was kept, and negative
/// where it was dropped: delta is between 0 and 1/(1-p). dQ and dK are dS.
TEST_P(DropoutBits, OfTheirGradients) {
  cases::CaseData data = unit_matrices(GetParam());
  fill(data.value.view(), 1.0 / kSize, 1.0 / kSize);
  fill(data.grad_out.view(), 1, 1);
  for (int family : {7, 9}) {
    const SimulatedMetal backend({.family = family}, {.seed = 1}, ForwardPlan::kTiles);
    data.reset_outputs();
    backend.forward(data.problem, data.forward_tensors());
    backend.backward(data.problem, data.backward_tensors());
    EXPECT_EQ(disagreements(data, data.grad_query.view(), false), 0);
    EXPECT_EQ(disagreements(data, data.grad_key.view(), true), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, DropoutBits,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16));

}  // namespace
}  // namespace sdpa::metal
