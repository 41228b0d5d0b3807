// SPDX-License-Identifier: MIT
//
// Every sentence that the door can answer with.
#include "sdpa/validate.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "sdpa/attention.h"

namespace sdpa {
namespace {

constexpr DType kFp32 = DType::kFloat32;

/// A valid call, backward and forward, to be spoilt: B2 H4/2 L3x5 D8/6 with a mask and sinks.
struct Call {
  std::vector<double> memory = std::vector<double>(4096);
  BackwardTensors t{.query = tensor({2, 4, 3, 8}),
                    .key = tensor({2, 2, 5, 8}),
                    .value = tensor({2, 2, 5, 6}),
                    .mask = tensor({2, 1, 3, 5}),
                    .sinks = tensor({4}),
                    .out = tensor({2, 4, 3, 6}),
                    .lse = tensor({2, 4, 3, 1}),
                    .grad_out = tensor({2, 4, 3, 6}),
                    .grad_lse = tensor({2, 4, 3, 1}),
                    .grad_query = tensor({2, 4, 3, 8}),
                    .grad_key = tensor({2, 2, 5, 8}),
                    .grad_value = tensor({2, 2, 5, 6}),
                    .grad_mask = tensor({2, 1, 3, 5}),
                    .grad_sinks = tensor({4})};
  Attributes attributes;

  TensorView tensor(std::initializer_list<std::int64_t> shape) {
    return dense(memory.data(), kFp32, shape);
  }

  /// What the door says; empty if it lets the call pass.
  std::string complaint() const {
    try {
      validate(t, attributes);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  }
};

TEST(Validate, AcceptsAValidCall) { EXPECT_EQ(Call().complaint(), ""); }

TEST(Validate, Rank) {
  Call call;
  call.t.query = call.tensor({8});
  EXPECT_EQ(call.complaint(), "query has 1 dimensions; 2 to 8 are allowed");
  call.t.query = {};
  EXPECT_EQ(call.complaint(), "query has 0 dimensions; 2 to 8 are allowed");
  call.t.query = Call().t.query;
  call.t.query.rank = 9;
  EXPECT_EQ(call.complaint(), "query has 9 dimensions; 2 to 8 are allowed");
  call = Call();
  call.t.key = call.tensor({4});
  EXPECT_EQ(call.complaint(), "key has 1 dimensions; 2 to 8 are allowed");
}

TEST(Validate, DTypes) {
  Call call;
  call.t.query.dtype = DType::kBool;
  EXPECT_EQ(call.complaint(),
            "query has dtype bool; float32, float16, bfloat16 and float64 are allowed");
  call = Call();
  call.t.key.dtype = DType::kFloat16;
  EXPECT_EQ(call.complaint(),
            "query, key and value must have the same dtype, but query has float32 and key has "
            "float16");
  call = Call();
  call.t.value.dtype = DType::kBFloat16;
  EXPECT_EQ(call.complaint(),
            "query, key and value must have the same dtype, but query has float32 and value has "
            "bfloat16");
}

TEST(Validate, Devices) {
  Call call;
  call.t.value.device = Device::kMetal;
  EXPECT_EQ(call.complaint(),
            "query, key and value must be on the same device, but value is not where query is");
  call = Call();
  call.t.mask.device = Device::kMetal;
  EXPECT_EQ(call.complaint(), "attn_mask must be on the same device as query");
  call = Call();
  call.t.sinks.device = Device::kMetal;
  EXPECT_EQ(call.complaint(), "sinks must be on the same device as query");
  call = Call();
  call.t.grad_key.device = Device::kMetal;
  EXPECT_EQ(call.complaint(), "the gradient of key must be on the same device as query");
}

TEST(Validate, Memory) {
  Call call;
  call.t.query.data = nullptr;
  EXPECT_EQ(call.complaint(), "query of shape [2, 4, 3, 8] has no memory");
  call = Call();
  call.t.mask.data = nullptr;
  EXPECT_EQ(call.complaint(), "attn_mask of shape [2, 1, 3, 5] has no memory");
  call = Call();
  call.t.out.data = nullptr;
  EXPECT_EQ(call.complaint(), "out of shape [2, 4, 3, 6] has no memory");
  call = Call();
  call.t.query.shape[2] = -3;
  EXPECT_EQ(call.complaint(), "query has shape [2, 4, -3, 8]; extents of 0 and more are allowed");
}

TEST(Validate, HeadDimensions) {
  Call call;
  call.t.key.shape[3] = 7;
  EXPECT_EQ(call.complaint(), "key has 7 elements in its last dimension; it must have query's 8");
  call = Call();
  call.t.value.shape[2] = 4;
  EXPECT_EQ(call.complaint(), "value has length 4 (dimension -2); it must have key's 5");
  call = Call();
  call.t.value.shape[3] = 513;
  EXPECT_EQ(call.complaint(),
            "head dimensions up to 512 are allowed; query has 8 and value has 513");
}

TEST(Validate, Heads) {
  Call call;
  call.t.query.shape[1] = 3;
  EXPECT_EQ(call.complaint(), "query has 3 heads (dimension -3), which key's 2 do not divide");
  call = Call();
  call.t.value.shape[1] = 3;
  EXPECT_EQ(call.complaint(), "the heads of key and value must match or be 1, but got 2 and 3");
  call = Call();
  call.t.key.shape[1] = call.t.value.shape[1] = 0;
  EXPECT_EQ(call.complaint(), "query has 4 heads (dimension -3), but key has none");
}

TEST(Validate, Batch) {
  Call call;
  call.t.query.shape[0] = 3;
  EXPECT_EQ(call.complaint(), "the batch of query and key must match or be 1, but got 3 and 2");
  call = Call();
  call.t.value.shape[0] = 5;
  EXPECT_EQ(call.complaint(), "the batch of key and value must match or be 1, but got 2 and 5");
}

TEST(Validate, Mask) {
  Call call;
  call.t.mask = call.tensor({2, 1, 3, 4});
  EXPECT_EQ(call.complaint(),
            "attn_mask has shape [2, 1, 3, 4]; it must broadcast to [batch, heads, q_len, kv_len] "
            "with q_len = 3 and kv_len = 5");
  call.t.mask = call.tensor({3, 1, 3, 5});
  EXPECT_EQ(call.complaint(),
            "attn_mask has shape [3, 1, 3, 5]; it must broadcast to [batch, heads, q_len, kv_len] "
            "with q_len = 3 and kv_len = 5");
  call.t.mask.rank = 9;
  EXPECT_EQ(call.complaint(), "attn_mask has 9 dimensions; up to 8 are allowed");
}

TEST(Validate, Sinks) {
  Call call;
  call.t.sinks = call.tensor({2});
  EXPECT_EQ(call.complaint(), "sinks has shape [2]; it must be [4], one logit a query head");
  call.t.sinks = call.tensor({1, 4});
  EXPECT_EQ(call.complaint(), "sinks has shape [1, 4]; it must be [4], one logit a query head");
  call.t.sinks = call.tensor({4});
  call.t.sinks.dtype = DType::kBool;
  EXPECT_EQ(call.complaint(), "sinks has dtype bool; a float dtype is allowed");
}

TEST(Validate, Attributes) {
  Call call;
  call.attributes.dropout.probability = 1.5;
  EXPECT_EQ(call.complaint(), "dropout probability must be between 0 and 1, but got 1.5");
  call.attributes.dropout.probability = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(call.complaint(), "dropout probability must be between 0 and 1, but got nan");
  call = Call();
  call.attributes.softcap = -2;
  EXPECT_EQ(call.complaint(), "softcap must be 0 (none) or a positive number, but got -2");
  call = Call();
  call.attributes.window = {-2, 3};
  EXPECT_EQ(call.complaint(),
            "window must be (left, right) with -1 for an open side, but got (-2, 3)");
}

TEST(Validate, Outputs) {
  Call call;
  call.t.out = {};
  EXPECT_EQ(call.complaint(), "out is absent; it must have shape [2, 4, 3, 6]");
  call.t.out = call.tensor({2, 4, 3, 8});
  EXPECT_EQ(call.complaint(), "out has shape [2, 4, 3, 8]; it must be [2, 4, 3, 6]");
  call = Call();
  call.t.out.dtype = DType::kFloat64;
  EXPECT_EQ(call.complaint(), "out has dtype float64; it must be float32");
  call = Call();
  call.t.lse = call.tensor({2, 4, 3});
  EXPECT_EQ(call.complaint(), "lse has shape [2, 4, 3]; it must be [2, 4, 3, 1]");
  call.t.lse = {};
  EXPECT_EQ(call.complaint(), "lse is absent; the backward pass needs the forward pass's");
}

TEST(Validate, SumsOf16BitTensorsAreFloat32) {
  Call call;
  for (TensorView BackwardTensors::* each :
       {&BackwardTensors::query, &BackwardTensors::key, &BackwardTensors::value,
        &BackwardTensors::out, &BackwardTensors::grad_out, &BackwardTensors::grad_query,
        &BackwardTensors::grad_key, &BackwardTensors::grad_value})
    (call.t.*each).dtype = DType::kBFloat16;
  EXPECT_EQ(call.complaint(), "");
  call.t.lse.dtype = DType::kBFloat16;
  EXPECT_EQ(call.complaint(), "lse has dtype bfloat16; it must be float32");
}

TEST(Validate, Gradients) {
  Call call;
  call.t.grad_out = call.tensor({2, 4, 3, 8});
  EXPECT_EQ(call.complaint(),
            "the gradient of out has shape [2, 4, 3, 8]; it must be [2, 4, 3, 6]");
  call = Call();
  call.t.grad_key = call.tensor({1, 2, 5, 8});
  EXPECT_EQ(call.complaint(),
            "the gradient of key has shape [1, 2, 5, 8]; it must be [2, 2, 5, 8]");
  call = Call();
  call.t.grad_query.dtype = DType::kFloat64;
  EXPECT_EQ(call.complaint(), "the gradient of query has dtype float64; it must be float32");
  call = Call();
  call.t.grad_sinks = call.tensor({3});
  EXPECT_EQ(call.complaint(), "the gradient of sinks has shape [3]; it must be [4]");
  call = Call();
  call.t.mask.dtype = DType::kBool;
  EXPECT_EQ(call.complaint(), "the gradient of attn_mask was asked for, but a bool mask has none");
}

TEST(Validate, GradientsAreOfTheBroadcastShape) {
  Call call;
  call.t.key = call.tensor({1, 2, 5, 8});
  EXPECT_EQ(call.complaint(), "");
}

TEST(Validate, AProblemNeedsNoOutputs) {
  const Call call;
  const Problem problem =
      make_problem({.query = call.t.query, .key = call.t.key, .value = call.t.value}, {});
  EXPECT_EQ(to_string(problem), "float32 B2 H4/2 L3x5 D8/6");
}

TEST(Validate, WideWindowsAreOpen) {
  const Call call;
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const Problem problem =
      make_problem({.query = call.t.query, .key = call.t.key, .value = call.t.value},
                   {.window = {kMost, kMost}});
  EXPECT_EQ(problem.window.left, -1);
  EXPECT_EQ(problem.window.right, -1);
}

}  // namespace
}  // namespace sdpa
