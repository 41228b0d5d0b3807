// SPDX-License-Identifier: MIT
#include "sdpa/validate.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <stdexcept>

#include "sdpa/attention.h"

namespace sdpa {
namespace {

/// Throws the sentence made of `parts`.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

void check_memory(const char* argument, const TensorView& view) {
  if (std::any_of(view.shape.begin(), view.shape.begin() + view.rank,
                  [](std::int64_t extent) { return extent < 0; }))
    fail(argument, " has shape ", shape_string(view), "; extents of 0 and more are allowed");
  if (view.data == nullptr && view.element_count() > 0)
    fail(argument, " of shape ", shape_string(view), " has no memory");
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
  check_memory(argument, view);
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
  check_memory("attn_mask", t.mask);
  const TensorView out = with_rank(output_shape(t.query, t.key, t.value), kMaxRank);
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
  const std::int64_t heads = output_shape(t.query, t.key, t.value).extent(-3);
  if (t.sinks.rank != 1 || t.sinks.shape[0] != heads)
    fail("sinks has shape ", shape_string(t.sinks), "; it must be [", heads,
         "], one logit a query head");
  check_memory("sinks", t.sinks);
  if (t.sinks.dtype == DType::kBool) fail("sinks has dtype bool; a float dtype is allowed");
  if (t.sinks.device != t.query.device) fail("sinks must be on the same device as query");
}

/// Whether two views have the same extents, leading ones of 1 apart.
bool same_shape(const TensorView& first, const TensorView& second) {
  return with_rank(first, kMaxRank).shape == with_rank(second, kMaxRank).shape;
}

/// A tensor that is written, or that an earlier call wrote: one shape and one dtype are right.
void check_output(const char* argument, const TensorView& view, const TensorView& query,
                  const TensorView& shape, DType dtype) {
  if (!view.is_present()) fail(argument, " is absent; it must have shape ", shape_string(shape));
  if (view.rank > kMaxRank || !same_shape(view, shape))
    fail(argument, " has shape ", shape_string(view), "; it must be ", shape_string(shape));
  if (view.dtype != dtype)
    fail(argument, " has dtype ", name(view.dtype), "; it must be ", name(dtype));
  if (view.device != query.device) fail(argument, " must be on the same device as query");
  check_memory(argument, view);
}

/// Sums over many elements are kept wider than 16 bits.
DType sum_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

/// A view of `like`'s batch with other last three extents.
TensorView shaped(TensorView like, std::int64_t heads, std::int64_t rows, std::int64_t columns) {
  const auto last = static_cast<std::size_t>(like.rank);
  if (like.rank >= 3) like.shape[last - 3] = heads;
  like.shape[last - 2] = rows;
  like.shape[last - 1] = columns;
  return like;
}

void check_outputs(const ForwardTensors& t) {
  const TensorView out = output_shape(t.query, t.key, t.value);
  check_output("out", t.out, t.query, out, t.query.dtype);
  if (t.lse.is_present())
    check_output("lse", t.lse, t.query, shaped(out, out.extent(-3), out.extent(-2), 1),
                 sum_dtype(t.query.dtype));
}

/// Gradients have the broadcast shape of their tensor; the caller sums over what it broadcast.
void check_gradients(const BackwardTensors& t) {
  const DType dtype = t.query.dtype, sums = sum_dtype(dtype);
  const TensorView out = output_shape(t.query, t.key, t.value);
  const std::int64_t heads = out.extent(-3), kv_len = t.key.extent(-2), qk_dim = t.key.extent(-1);
  const std::int64_t kv_heads = broadcast_size(t.key.extent(-3), t.value.extent(-3), "heads");
  const TensorView query = shaped(out, heads, out.extent(-2), qk_dim);
  const TensorView key = shaped(out, kv_heads, kv_len, qk_dim);
  const TensorView value = shaped(out, kv_heads, kv_len, out.extent(-1));
  const auto check = [&](const char* argument, const TensorView& gradient, const TensorView& shape,
                         DType type) {
    if (gradient.is_present()) check_output(argument, gradient, t.query, shape, type);
  };
  check("the gradient of lse", t.grad_lse, t.lse, sums);
  check("the gradient of query", t.grad_query, query, dtype);
  check("the gradient of key", t.grad_key, key, dtype);
  check("the gradient of value", t.grad_value, value, dtype);
  check("the gradient of attn_mask", t.grad_mask, t.mask, sums);
  check("the gradient of sinks", t.grad_sinks, t.sinks, sums);
  if (t.grad_mask.is_present() && t.mask.dtype == DType::kBool)
    fail("the gradient of attn_mask was asked for, but a bool mask has none");
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

void validate_inputs(const ForwardTensors& t, const Attributes& attributes) {
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

void validate(const ForwardTensors& t, const Attributes& attributes) {
  validate_inputs(t, attributes);
  check_outputs(t);
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
  if (!t.lse.is_present()) fail("lse is absent; the backward pass needs the forward pass's");
  check_output("the gradient of out", t.grad_out, t.query, t.out, t.query.dtype);
  check_gradients(t);
}

}  // namespace sdpa
