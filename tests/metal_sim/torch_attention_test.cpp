// SPDX-License-Identifier: MIT
// torch's Metal kernels for long and for few queries agree with the oracle.
#include "torch_attention.h"

#include "run_kernel.h"

namespace sim {
namespace {

using sdpa::Causal;
using sdpa::DType;
using sdpa::cases::Case;

void expect_right_prefill(const Case& spec, const char* variant, const PrefillShape& shape = {}) {
  for (uint64_t seed : {0, 1}) {
    Attention call(spec);
    expect_none(call.failures(run_prefill(call, variant, shape, seed), Attention::Lse::kAbsent));
  }
}

Case prefill(DType dtype, int64_t dim) {
  return {.dtype = dtype,
          .batch = 2,
          .q_heads = 4,
          .kv_heads = 2,
          .q_len = 77,
          .kv_len = 109,
          .qk_dim = dim,
          .v_dim = dim};
}

TEST(TorchPrefill, Dense) {
  expect_right_prefill(prefill(DType::kFloat32, 64), "dense");
  expect_right_prefill(prefill(DType::kFloat16, 128), "dense");
}

TEST(TorchPrefill, Causal) {
  Case spec = prefill(DType::kBFloat16, 64);
  spec.causal = Causal::kUpperLeft;
  expect_right_prefill(spec, "causal");
}

TEST(TorchPrefill, BoolMask) {
  Case spec = prefill(DType::kFloat16, 64);
  spec.mask = {.shape = sdpa::cases::MaskShape::kPerHead,
               .pattern = sdpa::cases::MaskPattern::kEmptyRows};
  expect_right_prefill(spec, "masked");
}

TEST(TorchPrefill, AddedMaskAndCausal) {
  Case spec = prefill(DType::kFloat32, 256);
  spec.causal = Causal::kUpperLeft;
  spec.mask = {.shape = sdpa::cases::MaskShape::kFull, .dtype = DType::kFloat32};
  expect_right_prefill(spec, "added", {.rows = 16, .groups = 2});
}

TEST(TorchPrefill, StridedTensors) {
  Case spec = prefill(DType::kFloat32, 64);
  spec.layout = sdpa::cases::Layout::kTransposed;
  expect_right_prefill(spec, "dense");
}

Case decode(DType dtype, int64_t q_len, int64_t kv_len) {
  const int64_t dim = dtype == DType::kFloat32 ? 64 : 128;
  return {.dtype = dtype,
          .batch = 2,
          .q_heads = 4,
          .kv_heads = 2,
          .q_len = q_len,
          .kv_len = kv_len,
          .qk_dim = dim,
          .v_dim = dim};
}

void expect_right_decode(const Case& spec, const char* variant) {
  Attention call(spec);
  expect_none(call.failures(run_decode(call, variant, 1), Attention::Lse::kAbsent));
}

TEST(TorchDecode, OnePass) {
  expect_right_decode(decode(DType::kFloat32, 2, 300), "decode_");
  expect_right_decode(decode(DType::kBFloat16, 1, 77), "decode_");
}

TEST(TorchDecode, OnePassCausal) {
  Case spec = decode(DType::kFloat32, 7, 50);
  spec.causal = Causal::kUpperLeft;
  expect_right_decode(spec, "decode_causal_");
}

TEST(TorchDecode, OnePassMasked) {
  Case spec = decode(DType::kFloat32, 3, 120);
  spec.mask = {.shape = sdpa::cases::MaskShape::kPerHead};
  expect_right_decode(spec, "decode_masked_");
}

TEST(TorchDecode, TwoPasses) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Attention call(decode(dtype, 2, 1100));
    expect_none(call.failures(run_split_decode(call, 1), Attention::Lse::kAbsent));
  }
}

}  // namespace
}  // namespace sim
