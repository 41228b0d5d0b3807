// SPDX-License-Identifier: MIT
#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "sdpa/metal/graph_blocks.h"

namespace sdpa::metal {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

bool is_banded(const Problem& s) {
  return s.causal != Causal::kNone || s.window.left >= 0 || s.window.right >= 0;
}

std::array<std::int64_t, 4> extents(const TensorView& mask) {
  std::array<std::int64_t, 4> result{};
  for (std::size_t n = 0; mask.is_present() && n < 4; ++n) {
    result[n] = mask.strides[n] == 0 ? 1 : mask.shape[n];
  }
  return result;
}

/// The fewest queries of a block that keep within the number of blocks.
std::int64_t least_rows(const Problem& s, const GraphLimits& limits) {
  return std::min(s.q_len, std::max<std::int64_t>(ceil_div(s.q_len, limits.blocks), 64));
}

/// Whether the products of a block of queries with all keys are within what is computed right: of
/// queries and keys, of probabilities and values, and of probabilities, turned, and queries.
bool products_fit(const Problem& s, const GraphLimits& limits, std::int64_t rows) {
  const std::int64_t queries = s.group() * rows, dim = std::max(s.qk_dim, s.v_dim);
  const auto fits = [&](std::int64_t m, std::int64_t k, std::int64_t n) {
    return (m + 2 * std::min(k, limits.reduction)) * n * 4 <= limits.product_bytes;
  };
  return fits(queries, dim, s.kv_len) && fits(queries, s.kv_len, dim) &&
         fits(s.kv_len, queries, dim);
}

std::int64_t rows_of_block(const GraphSpec& spec) {
  const Problem& s = spec.problem;
  const GraphLimits& limits = spec.limits;
  if (uses_causal_operator(spec)) return s.q_len;
  const std::int64_t scores = uses_operator(spec) ? limits.operator_scores : limits.block_scores;
  std::int64_t rows = std::max<std::int64_t>(scores / (s.batch * s.q_heads * s.kv_len), 1);
  if (is_banded(s)) rows = std::min(rows, limits.banded_rows);
  rows = std::clamp(rows, ceil_div(s.q_len, limits.blocks), s.q_len);
  while (rows > 1 && !products_fit(s, limits, rows)) rows = ceil_div(rows, 2);
  return rows;
}

Block block_at(const Problem& s, std::int64_t row, std::int64_t rows) {
  const std::int64_t last = row + rows - 1;
  std::int64_t first_key = s.first_key(row), last_key = s.last_key(last);
  if (last_key <= first_key) first_key = 0, last_key = 1;
  return {.row = row,
          .rows = rows,
          .key = first_key,
          .keys = last_key - first_key,
          .hides_before = s.first_key(last) > first_key,
          .hides_after = s.last_key(row) < last_key};
}

/// Bytes of the largest array that a part with these heads of one batch entry needs.
std::int64_t largest_array(const Problem& s, std::int64_t q_heads, std::int64_t kv_heads) {
  const std::int64_t width = std::max(s.qk_dim, s.v_dim) * 4;
  std::int64_t bytes = std::max(q_heads * s.q_len, kv_heads * s.kv_len) * width;
  if (s.dropout.is_active()) bytes = std::max(bytes, q_heads * s.q_len * s.kv_len);
  return bytes;
}

/// Bytes of an array of the scores' rank, of which a part has some batch entries and heads.
std::int64_t mask_bytes(const std::array<std::int64_t, 4>& extents, std::int64_t batches,
                        std::int64_t q_heads, std::int64_t element_bytes) {
  return std::min(extents[0], batches) * std::min(extents[1], q_heads) * extents[2] * extents[3] *
         element_bytes;
}

/// Bytes of the larger of mask and its gradient.
std::int64_t mask_bytes(const GraphSpec& spec, std::int64_t batches, std::int64_t q_heads) {
  return std::max(
      mask_bytes(spec.mask, batches, q_heads, sdpa::size_bytes(spec.problem.mask_dtype)),
      mask_bytes(spec.grad_mask, batches, q_heads, 4));
}

/// Whether one graph can hold so many batch entries with so many heads.
bool fits(const GraphSpec& spec, std::int64_t batches, std::int64_t kv_heads) {
  const Problem& s = spec.problem;
  const GraphLimits& limits = spec.limits;
  const std::int64_t q_heads = kv_heads * s.group();
  return batches * q_heads * least_rows(s, limits) * s.kv_len <= limits.block_scores &&
         batches * largest_array(s, q_heads, kv_heads) <= limits.array_bytes &&
         mask_bytes(spec, batches, q_heads) <= limits.array_bytes;
}

/// The largest of equal parts of `count` that fit, at least one: parts of one size share a graph.
template <typename Fits>
std::int64_t equal_part(std::int64_t count, const Fits& part_fits) {
  for (std::int64_t parts = 1;; ++parts) {
    const std::int64_t size = ceil_div(count, parts);
    if (size <= 1 || part_fits(size)) return size;
  }
}

TensorView part_of(TensorView view, int dim, std::int64_t first, std::int64_t count) {
  if (!view.is_present()) return view;
  const auto index = static_cast<std::size_t>(dim);
  view.data =
      static_cast<char*>(view.data) + first * view.strides[index] * sdpa::size_bytes(view.dtype);
  view.shape[index] = count;
  return view;
}

/// A tensor with the heads of the queries, or one of the keys.
TensorView part_of(const TensorView& view, const Piece& p, std::int64_t group) {
  return part_of(part_of(view, 0, p.first_batch, p.batches), 1, p.first_kv_head * group,
                 p.kv_heads * group);
}

TensorView heads_of(const TensorView& sinks, const Piece& p, std::int64_t group) {
  return part_of(sinks, 1, p.first_kv_head * group, p.kv_heads * group);
}

std::string too_large(std::int64_t bytes, const GraphLimits& limits) {
  return "One array of a head has " + std::to_string(bytes) + " bytes; MPSGraph holds at most " +
         std::to_string(limits.array_bytes) + ".";
}

/// Whether a mask or sinks can be read in another dtype without loss.
bool is_exact(DType from, DType dtype) { return from == dtype || dtype == DType::kFloat32; }

}  // namespace

GraphSpec spec_of(const Problem& problem, const ForwardTensors& t) {
  return {.problem = problem,
          .pass = Pass::kForward,
          .sinks_dtype = t.sinks.dtype,
          .mask = extents(t.mask),
          .lse = t.lse.is_present()};
}

GraphSpec spec_of(const Problem& problem, const BackwardTensors& t) {
  return {.problem = problem,
          .pass = Pass::kBackward,
          .sinks_dtype = t.sinks.dtype,
          .mask = extents(t.mask),
          .grad_lse = t.grad_lse.is_present(),
          .grad_query = t.grad_query.is_present(),
          .grad_key = t.grad_key.is_present(),
          .grad_value = t.grad_value.is_present(),
          .grad_sinks = t.grad_sinks.is_present(),
          .grad_mask = extents(t.grad_mask)};
}

std::string key_of(const GraphSpec& spec) {
  const Problem& s = spec.problem;
  std::ostringstream key;
  key.precision(17);
  const auto add = [&](auto... fields) { ((key << fields << ' '), ...); };
  add(static_cast<int>(spec.pass), static_cast<int>(s.dtype), s.batch, s.q_heads, s.kv_heads,
      s.q_len, s.kv_len, s.qk_dim, s.v_dim, s.scale, static_cast<int>(s.causal), s.window.left,
      s.window.right, s.softcap, static_cast<int>(s.mask), static_cast<int>(s.mask_dtype),
      s.has_sinks, static_cast<int>(spec.sinks_dtype), s.dropout.probability, spec.lse,
      spec.grad_lse, spec.grad_query, spec.grad_key, spec.grad_value, spec.grad_sinks,
      spec.has_descriptor);
  for (const std::int64_t extent : spec.mask) add(extent);
  for (const std::int64_t extent : spec.grad_mask) add(extent);
  const GraphLimits& n = spec.limits;
  add(n.block_scores, n.operator_scores, n.operator_keys, n.banded_rows, n.reduction, n.blocks,
      n.product_bytes);
  return key.str();
}

std::vector<std::string> graph_refusals(const Problem& s, const GraphLimits& limits) {
  std::vector<std::string> reasons;
  if (s.dtype == DType::kFloat64) {
    reasons.push_back("MPSGraph has no float64; float32, float16 and bfloat16 tensors can run.");
  }
  if (s.mask != MaskKind::kNone && s.mask_dtype == DType::kFloat64) {
    reasons.push_back(
        "MPSGraph has no float64, which attn_mask has; bool, float32, float16 and bfloat16 can "
        "run.");
  }
  if (s.is_empty() || s.kv_len == 0) return reasons;
  const std::int64_t scores = s.group() * least_rows(s, limits) * s.kv_len;
  if (scores > limits.operator_scores) {
    reasons.push_back("One block of scores has " + std::to_string(scores) +
                      " elements; MPSGraph computes at most " +
                      std::to_string(limits.operator_scores) + " at a time without faults.");
  }
  std::int64_t bytes = largest_array(s, s.group(), 1);
  if (s.mask != MaskKind::kNone && s.mask_varies_by_query) {
    bytes = std::max(bytes, s.q_len * s.kv_len * sdpa::size_bytes(s.mask_dtype));
  }
  if (bytes > limits.array_bytes) reasons.push_back(too_large(bytes, limits));
  if (!products_fit(s, limits, least_rows(s, limits))) {
    reasons.push_back("One product of a block and all keys is past what MPSGraph computes right.");
  }
  return reasons;
}

bool uses_operator(const GraphSpec& spec) {
  const Problem& s = spec.problem;
  if (spec.pass == Pass::kBackward || spec.lse) return false;
  if (s.softcap > 0 || s.dropout.is_active() || s.qk_dim != s.v_dim) return false;
  if (s.kv_len > spec.limits.operator_keys) return false;
  const bool knows_sinks =
      spec.has_descriptor && s.group() == 1 && is_exact(spec.sinks_dtype, s.dtype);
  if (s.has_sinks && !knows_sinks) return false;
  return s.mask != MaskKind::kAdditive || is_exact(s.mask_dtype, s.dtype);
}

// The triangle of grouped heads is no triangle, and which corner Apple aligns it to is not said.
bool uses_causal_operator(const GraphSpec& spec) {
  const Problem& s = spec.problem;
  return uses_operator(spec) && spec.has_descriptor && s.causal != Causal::kNone &&
         s.window.left < 0 && s.mask == MaskKind::kNone && s.group() == 1 && s.q_len == s.kv_len &&
         s.batch * s.q_heads * s.q_len * s.kv_len <= spec.limits.operator_scores;
}

std::vector<Block> blocks_of(const GraphSpec& spec) {
  const Problem& s = spec.problem;
  const std::int64_t rows = rows_of_block(spec);
  std::vector<Block> blocks;
  if (uses_causal_operator(spec)) return {{.row = 0, .rows = rows, .key = 0, .keys = s.kv_len}};
  for (std::int64_t row = 0; row < s.q_len; row += rows) {
    blocks.push_back(block_at(s, row, std::min(rows, s.q_len - row)));
  }
  return blocks;
}

std::vector<Piece> pieces_of(const GraphSpec& spec) {
  const Problem& s = spec.problem;
  const std::int64_t bytes = mask_bytes(spec, 1, s.group());
  if (bytes > spec.limits.array_bytes) throw std::runtime_error(too_large(bytes, spec.limits));
  std::vector<Piece> pieces;
  const bool whole = fits(spec, 1, s.kv_heads);
  const auto fit_batches = [&](std::int64_t n) { return fits(spec, n, s.kv_heads); };
  const auto fit_heads = [&](std::int64_t n) { return fits(spec, 1, n); };
  const std::int64_t batches = whole ? equal_part(s.batch, fit_batches) : 1;
  const std::int64_t heads = whole ? s.kv_heads : equal_part(s.kv_heads, fit_heads);
  for (std::int64_t b = 0; b < s.batch; b += batches) {
    for (std::int64_t h = 0; h < s.kv_heads; h += heads) {
      pieces.push_back({.first_batch = b,
                        .batches = std::min(batches, s.batch - b),
                        .first_kv_head = h,
                        .kv_heads = std::min(heads, s.kv_heads - h)});
    }
  }
  return pieces;
}

Problem restricted(Problem s, const Piece& p) {
  s.dropout.first_head += p.first_batch * s.q_heads + p.first_kv_head * s.group();
  s.q_heads = p.kv_heads * s.group();
  s.kv_heads = p.kv_heads;
  s.batch = p.batches;
  return s;
}

ForwardTensors restricted(const Problem& s, ForwardTensors t, const Piece& p) {
  for (TensorView* view : {&t.query, &t.mask, &t.out, &t.lse}) *view = part_of(*view, p, s.group());
  for (TensorView* view : {&t.key, &t.value}) *view = part_of(*view, p, 1);
  t.sinks = heads_of(t.sinks, p, s.group());
  return t;
}

BackwardTensors restricted(const Problem& s, BackwardTensors t, const Piece& p) {
  for (TensorView* view :
       {&t.query, &t.mask, &t.out, &t.lse, &t.grad_out, &t.grad_lse, &t.grad_query, &t.grad_mask}) {
    *view = part_of(*view, p, s.group());
  }
  for (TensorView* view : {&t.key, &t.value, &t.grad_key, &t.grad_value}) {
    *view = part_of(*view, p, 1);
  }
  for (TensorView* view : {&t.sinks, &t.grad_sinks}) *view = heads_of(*view, p, s.group());
  return t;
}

}  // namespace sdpa::metal
