// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "sdpa/tensor.h"

namespace sdpa {

/// Which keys a query may see by its position. `kUpperLeft`: key j <= query i, as torch.
/// `kLowerRight`: j <= i + kv_len - q_len, for decoding with a cache.
enum class Causal : std::uint8_t { kNone, kUpperLeft, kLowerRight };

/// Forward: output and LSE. Backward: the gradients.
enum class Pass : std::uint8_t { kForward, kBackward };

enum class MaskKind : std::uint8_t { kNone, kBool, kAdditive };

/// A sliding window around the query's aligned position: keys from `position - left` to
/// `position + right`; -1 leaves that side open. The position is `i`, or `i + kv_len - q_len` under
/// `Causal::kLowerRight`.
struct Window {
  std::int64_t left = -1;
  std::int64_t right = -1;
};

/// Dropout on the probabilities; see dropout.h. `first_head` is added to the batch*q_heads + head
/// of the counter: it is not zero when a larger call is split into several problems.
struct Dropout {
  double probability = 0;
  std::uint64_t seed = 0;
  std::uint32_t offset = 0;
  std::int64_t first_head = 0;

  bool is_active() const { return probability > 0; }

  /// A word below this drops its element.
  std::uint32_t threshold() const;

  /// What a kept probability is multiplied by: 1 / (1 - p), and 0 for p = 1.
  double rescale() const;
};

/// What a caller asks for besides the tensors.
struct Attributes {
  std::optional<double> scale{};  ///< 1 / sqrt(qk_dim) where absent
  Causal causal = Causal::kNone;
  Window window{};
  double softcap = 0;  ///< 0: none
  Dropout dropout{};
};

/// The tensors of a forward pass. `mask`, `sinks` and `lse` may be absent.
///
/// query [batch, q_heads, q_len, qk_dim], key [batch, kv_heads, kv_len, qk_dim], value [batch,
/// kv_heads, kv_len, v_dim], mask broadcastable to [batch, q_heads, q_len, kv_len], sinks
/// [q_heads], out [batch, q_heads, q_len, v_dim], lse [batch, q_heads, q_len, 1] (float32, natural
/// base; float64 for float64 inputs).
struct ForwardTensors {
  TensorView query{}, key{}, value{}, mask{}, sinks{};
  TensorView out{}, lse{};
};

/// The tensors of a backward pass. `lse` and `out` come from the forward pass. Absent gradients are
/// not computed. `grad_mask` and `grad_sinks` are float32 (float64 for float64 inputs); they have
/// the strides of what they belong to (0 where it broadcasts), come in filled with zeros and are
/// accumulated into. The others are overwritten, in the problem's dtype.
struct BackwardTensors {
  TensorView query{}, key{}, value{}, mask{}, sinks{};
  TensorView out{}, lse{}, grad_out{}, grad_lse{};
  TensorView grad_query{}, grad_key{}, grad_value{}, grad_mask{}, grad_sinks{};
};

/// One attention call, validated: everything that a plan may depend on except addresses.
/// The mathematics is that of reference.cpp.
struct Problem {
  DType dtype = DType::kFloat32;
  Device device = Device::kCpu;
  std::int64_t batch = 0;
  std::int64_t q_heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  std::int64_t qk_dim = 0;
  std::int64_t v_dim = 0;
  double scale = 1;
  Causal causal = Causal::kNone;
  Window window{};
  double softcap = 0;
  MaskKind mask = MaskKind::kNone;
  DType mask_dtype = DType::kBool;
  bool mask_varies_by_query = false;  ///< false for a key-padding mask
  bool has_sinks = false;
  Dropout dropout{};

  std::int64_t group() const { return q_heads / kv_heads; }

  bool is_empty() const { return batch == 0 || q_heads == 0 || q_len == 0; }

  /// Any extent of zero: a few loops of the reference give the empty or zero result, and no back
  /// end is asked for a plan.
  bool is_degenerate() const { return is_empty() || kv_len == 0 || qk_dim == 0 || v_dim == 0; }

  /// How far a query's aligned position is ahead of its index.
  std::int64_t diagonal() const { return causal == Causal::kLowerRight ? kv_len - q_len : 0; }

  /// The keys [first, last) that causality and the window let query `row` see; empty: first >=
  /// last.
  std::int64_t first_key(std::int64_t row) const;
  std::int64_t last_key(std::int64_t row) const;
};

/// batch * q_heads * (visible pairs by causality and window): the measure of work that choices use.
double visible_pairs(const Problem& problem);

/// Multiplications and additions on visible pairs: 2 (qk_dim + v_dim) each forward, 2.5 times that
/// backward.
double flops(const Problem& problem, Pass pass);

/// "float32 B1 H8/2 L128x256 D64 causal dropout=0.1": one line for people.
std::string to_string(const Problem& problem);

/// The largest head dimension any back end accepts.
constexpr std::int64_t kMaxHeadDim = 512;

}  // namespace sdpa
