// SPDX-License-Identifier: MIT
#include "sdpa/validate.h"

#include <cmath>
#include <sstream>
#include <stdexcept>

namespace sdpa {
namespace {

/// Throws the sentence made of `parts`.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

void check_input(const char* argument, const TensorView& view, const TensorView& query) {
  if (view.rank < 2 || view.rank > kMaxRank)
    fail(argument, " has ", view.rank, " dimensions; 2 to ", kMaxRank, " are allowed");
  if (view.dtype == DType::kBool)
    fail(argument, " has dtype bool; float32, float16, bfloat16 and float64 are allowed");
  if (view.dtype != query.dtype)
    fail("query, key and value must have the same dtype, but query has ", name(query.dtype),
         " and ", argument, " has ", name(view.dtype));
  if (view.device != query.device)
    fail("query, key and value must be on the same device, but ", argument,
         " is not where query is");
}

void check_dims(const ForwardTensors& t) {
  const std::int64_t qk_dim = t.query.extent(-1);
  if (t.key.extent(-1) != qk_dim)
    fail("key has ", t.key.extent(-1), " elements in its last dimension; it must have query's ",
         qk_dim);
  if (t.value.extent(-2) != t.key.extent(-2))
    fail("value has length ", t.value.extent(-2), " (dimension -2); it must have key's ",
         t.key.extent(-2));
  if (qk_dim > kMaxHeadDim || t.value.extent(-1) > kMaxHeadDim)
    fail("head dimensions up to ", kMaxHeadDim, " are allowed; query has ", qk_dim,
         " and value has ", t.value.extent(-1));
}

void check_heads(const ForwardTensors& t) {
  const std::int64_t q_heads = t.query.extent(-3);
  const std::int64_t kv_heads =
      broadcast_size(t.key.extent(-3), t.value.extent(-3), "the heads of key and value");
  if (kv_heads > 0 && q_heads % kv_heads != 0 && q_heads != 1)
    fail("query has ", q_heads, " heads (dimension -3), which key's ", kv_heads, " do not divide");
  if (kv_heads == 0 && q_heads > 1)
    fail("query has ", q_heads, " heads (dimension -3), but key has none");
}

void check_batch(const ForwardTensors& t) {
  for (int dim = -4; dim >= -kMaxRank; --dim) {
    const std::int64_t keys =
        broadcast_size(t.key.extent(dim), t.value.extent(dim), "the batch of key and value");
    broadcast_size(t.query.extent(dim), keys, "the batch of query and key");
  }
}

void check_mask(const ForwardTensors& t) {
  if (!t.mask.is_present()) return;
  if (t.mask.device != t.query.device) fail("attn_mask must be on the same device as query");
  if (t.mask.rank > kMaxRank)
    fail("attn_mask has ", t.mask.rank, " dimensions; up to ", kMaxRank, " are allowed");
  const TensorView out = with_rank(t.out, kMaxRank);
  const TensorView mask = with_rank(t.mask, kMaxRank);
  for (int dim = 0; dim < kMaxRank; ++dim) {
    const std::int64_t size = dim == kMaxRank - 1 ? t.key.extent(-2) : out.shape[dim];
    if (mask.shape[dim] != size && mask.shape[dim] != 1)
      fail("attn_mask has shape ", shape_string(t.mask),
           "; it must broadcast to [batch, heads, q_len, kv_len] with q_len = ", t.query.extent(-2),
           " and kv_len = ", t.key.extent(-2));
  }
}

void check_sinks(const ForwardTensors& t) {
  if (!t.sinks.is_present()) return;
  if (t.sinks.rank != 1 || t.sinks.shape[0] != t.out.extent(-3))
    fail("sinks has shape ", shape_string(t.sinks), "; it must be [", t.out.extent(-3),
         "], one logit a query head");
  if (t.sinks.dtype == DType::kBool) fail("sinks has dtype bool; a float dtype is allowed");
  if (t.sinks.device != t.query.device) fail("sinks must be on the same device as query");
}

void check_attributes(const Attributes& a) {
  if (!(a.dropout.probability >= 0 && a.dropout.probability <= 1))
    fail("dropout probability must be between 0 and 1, but got ", a.dropout.probability);
  if (!(a.softcap >= 0) || std::isinf(a.softcap))
    fail("softcap must be 0 (none) or a positive number, but got ", a.softcap);
  if (a.window.left < -1 || a.window.right < -1)
    fail("window must be (left, right) with -1 for an open side, but got (", a.window.left, ", ",
         a.window.right, ")");
}

}  // namespace

std::int64_t broadcast_size(std::int64_t first, std::int64_t second, const char* what) {
  if (first == second || second == 1) return first;
  if (first != 1) fail(what, " must match or be 1, but got ", first, " and ", second);
  return second;
}

void validate(const ForwardTensors& t, const Attributes& attributes) {
  check_input("query", t.query, t.query);
  check_input("key", t.key, t.query);
  check_input("value", t.value, t.query);
  check_dims(t);
  check_heads(t);
  check_batch(t);
  check_mask(t);
  check_sinks(t);
  check_attributes(attributes);
}

void validate(const BackwardTensors& t, const Attributes& attributes) {
  validate(ForwardTensors{.query = t.query,
                          .key = t.key,
                          .value = t.value,
                          .mask = t.mask,
                          .sinks = t.sinks,
                          .out = t.out,
                          .lse = t.lse},
           attributes);
  if (t.grad_out.dtype != t.query.dtype || t.out.dtype != t.query.dtype)
    fail("out and its gradient must have query's dtype ", name(t.query.dtype), ", but got ",
         name(t.out.dtype), " and ", name(t.grad_out.dtype));
  if (t.grad_out.element_count() != t.out.element_count())
    fail("the gradient of out has shape ", shape_string(t.grad_out), "; it must have that of out, ",
         shape_string(t.out));
}

}  // namespace sdpa
