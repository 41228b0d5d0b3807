// SPDX-License-Identifier: MIT
//
// attention > validate > canonical views of rank 4 > select > run. Calls of rank above 4 merge
// their leading dimensions where all strides allow it; what is left is looped over, one problem
// each.
#include "sdpa/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "sdpa/reference.h"
#include "sdpa/registry.h"
#include "sdpa/validate.h"

namespace sdpa {
namespace {

/// A tensor of the call and the sizes that its last three dimensions broadcast to.
struct Operand {
  TensorView* view;
  std::int64_t heads, rows, columns;
};

std::vector<Operand> present(std::vector<Operand> list) {
  std::erase_if(list, [](const Operand& operand) { return !operand.view->is_present(); });
  return list;
}

std::vector<Operand> operands(ForwardTensors& t, const Problem& s) {
  return present({{&t.query, s.q_heads, s.q_len, s.qk_dim},
                  {&t.key, s.kv_heads, s.kv_len, s.qk_dim},
                  {&t.value, s.kv_heads, s.kv_len, s.v_dim},
                  {&t.mask, s.q_heads, s.q_len, s.kv_len},
                  {&t.out, s.q_heads, s.q_len, s.v_dim},
                  {&t.lse, s.q_heads, s.q_len, 1}});
}

std::vector<Operand> operands(BackwardTensors& t, const Problem& s) {
  return present({{&t.query, s.q_heads, s.q_len, s.qk_dim},
                  {&t.key, s.kv_heads, s.kv_len, s.qk_dim},
                  {&t.value, s.kv_heads, s.kv_len, s.v_dim},
                  {&t.mask, s.q_heads, s.q_len, s.kv_len},
                  {&t.out, s.q_heads, s.q_len, s.v_dim},
                  {&t.lse, s.q_heads, s.q_len, 1},
                  {&t.grad_out, s.q_heads, s.q_len, s.v_dim},
                  {&t.grad_lse, s.q_heads, s.q_len, 1},
                  {&t.grad_query, s.q_heads, s.q_len, s.qk_dim},
                  {&t.grad_key, s.kv_heads, s.kv_len, s.qk_dim},
                  {&t.grad_value, s.kv_heads, s.kv_len, s.v_dim},
                  {&t.grad_mask, s.q_heads, s.q_len, s.kv_len}});
}

/// One value a head as [1, heads, 1, 1].
void spread_over_heads(TensorView& view) {
  if (!view.is_present()) return;
  const std::int64_t heads = view.shape[0], stride = view.strides[0];
  view.rank = 4;
  view.shape = {1, heads, 1, 1};
  view.strides = {0, stride, 0, 0};
}

/// Drops dimension `dim` of a view.
void erase_dim(TensorView& view, int dim) {
  std::copy(view.shape.begin() + dim + 1, view.shape.end(), view.shape.begin() + dim);
  std::copy(view.strides.begin() + dim + 1, view.strides.end(), view.strides.begin() + dim);
  --view.rank;
}

/// Whether dimensions 0 and 1 of a view can be walked as one.
bool merges(const TensorView& view) {
  return view.shape[0] == 1 || view.shape[1] == 1 ||
         view.strides[0] == view.strides[1] * view.shape[1];
}

void merge(TensorView& view) {
  if (view.shape[1] == 1) view.strides[1] = view.strides[0];
  view.shape[1] *= view.shape[0];
  erase_dim(view, 0);
}

/// Enlarges a dimension of size 1 by a stride of 0.
void enlarge(TensorView& view, int dim, std::int64_t size) {
  const auto index = static_cast<std::size_t>(dim);
  if (view.shape[index] == size) return;
  view.shape[index] = size;
  view.strides[index] = 0;
}

/// Brings every operand to the sizes it broadcasts to; then merges leading dimensions while all
/// operands can, until rank 4 is reached or one cannot.
void canonicalize(std::vector<Operand>& list, const TensorView& out) {
  const int rank = std::max(out.rank, 4);
  const TensorView full = with_rank(out, rank);
  for (auto& [view, heads, rows, columns] : list) {
    if (view->rank != rank) *view = with_rank(*view, rank);
    for (int dim = 0; dim < rank - 3; ++dim) enlarge(*view, dim, full.shape[dim]);
    enlarge(*view, rank - 3, heads);
    enlarge(*view, rank - 2, rows);
    enlarge(*view, rank - 1, columns);
  }
  while (list[0].view->rank > 4 &&
         std::ranges::all_of(list, [](const Operand& o) { return merges(*o.view); }))
    for (auto& operand : list) merge(*operand.view);
}

/// Calls `run(first_head)` for each index of the outermost dimension of operands above rank 4.
template <typename Run>
void for_each_outer(const std::vector<Operand>& list, std::int64_t first_head, const Run& run) {
  if (list[0].view->rank == 4) return run(first_head);
  std::vector<TensorView> saved;
  for (const auto& operand : list) saved.push_back(*operand.view);
  const TensorView& query = saved[0];
  std::int64_t heads = query.shape[static_cast<std::size_t>(query.rank - 3)];
  for (int dim = 1; dim < query.rank - 3; ++dim) heads *= query.shape[dim];
  for (std::int64_t index = 0; index < query.shape[0]; ++index) {
    for (std::size_t n = 0; n < list.size(); ++n) {
      TensorView& view = *list[n].view;
      view = saved[n];
      view.data = static_cast<char*>(view.data) + index * view.strides[0] * size_bytes(view.dtype);
      erase_dim(view, 0);
    }
    for_each_outer(list, first_head + index * heads, run);
  }
  for (std::size_t n = 0; n < list.size(); ++n) *list[n].view = saved[n];
}

MaskKind kind_of(const TensorView& mask) {
  if (!mask.is_present()) return MaskKind::kNone;
  return mask.dtype == DType::kBool ? MaskKind::kBool : MaskKind::kAdditive;
}

/// A window as wide as both sequences is an open one; wider ones would overflow.
Window bounded(Window window, std::int64_t limit) {
  if (window.left >= limit) window.left = -1;
  if (window.right >= limit) window.right = -1;
  return window;
}

/// Head counts after broadcasting.
struct Heads {
  std::int64_t query, key;
};

Heads heads_of(const TensorView& query, const TensorView& key, const TensorView& value) {
  const std::int64_t kv_heads =
      broadcast_size(key.extent(-3), value.extent(-3), "the heads of key and value");
  return {query.extent(-3) == 1 ? kv_heads : query.extent(-3), kv_heads};
}

template <typename Tensors>
Problem describe(const Tensors& t, const Attributes& a) {
  const Heads heads = heads_of(t.query, t.key, t.value);
  const TensorView out = output_shape(t.query, t.key, t.value);
  std::int64_t batch = 1;
  for (int dim = 0; dim < out.rank - 3; ++dim) batch *= out.shape[dim];
  const std::int64_t qk_dim = t.query.extent(-1);
  return {.dtype = t.query.dtype,
          .device = t.query.device,
          .batch = batch,
          .q_heads = heads.query,
          .kv_heads = heads.key,
          .q_len = t.query.extent(-2),
          .kv_len = t.key.extent(-2),
          .qk_dim = qk_dim,
          .v_dim = t.value.extent(-1),
          .scale = a.scale.value_or(qk_dim > 0 ? 1 / std::sqrt(static_cast<double>(qk_dim)) : 1),
          .causal = a.causal,
          .window = bounded(a.window, t.query.extent(-2) + t.key.extent(-2)),
          .softcap = a.softcap,
          .mask = kind_of(t.mask),
          .mask_dtype = t.mask.dtype,
          .mask_varies_by_query = t.mask.extent(-2) != 1,
          .has_sinks = t.sinks.is_present(),
          .dropout = a.dropout};
}

/// The one path of both passes, after validation: choose, then run each rank-4 piece.
template <typename Tensors, typename Run>
Choice choose_and_run(Tensors& t, Pass pass, const Attributes& attributes, const Request& request,
                      const Run& run) {
  Problem problem = describe(t, attributes);
  const auto candidates = request.candidates.empty() ? backends() : request.candidates;
  Choice choice = select(problem, pass, request.backend, candidates, request.thresholds);
  if (choice.backend == nullptr) return choice;
  spread_over_heads(t.sinks);
  std::vector<Operand> list = operands(t, problem);
  canonicalize(list, t.out);
  for_each_outer(list, problem.dropout.first_head, [&](std::int64_t first_head) {
    problem.batch = t.query.shape[0];
    problem.dropout.first_head = first_head;
    run(*choice.backend, problem);
  });
  return choice;
}

}  // namespace

TensorView output_shape(const TensorView& query, const TensorView& key, const TensorView& value) {
  const int rank = std::max({query.rank, key.rank, value.rank});
  TensorView out = with_rank(query, rank);
  for (int dim = -4; dim >= -rank; --dim)
    out.shape[static_cast<std::size_t>(rank + dim)] = broadcast_size(
        query.extent(dim),
        broadcast_size(key.extent(dim), value.extent(dim), "the batch of key and value"),
        "the batch of query and key");
  if (rank >= 3) out.shape[static_cast<std::size_t>(rank - 3)] = heads_of(query, key, value).query;
  out.shape[static_cast<std::size_t>(rank - 1)] = value.extent(-1);
  return out;
}

Problem make_problem(const ForwardTensors& tensors, const Attributes& attributes) {
  validate_inputs(tensors, attributes);
  return describe(tensors, attributes);
}

Choice forward(const ForwardTensors& tensors, const Attributes& attributes,
               const Request& request) {
  validate(tensors, attributes);
  ForwardTensors t = tensors;
  return choose_and_run(
      t, Pass::kForward, attributes, request, [&](const Backend& backend, const Problem& problem) {
        problem.is_degenerate() ? reference::forward(problem, t) : backend.forward(problem, t);
      });
}

Choice backward(const BackwardTensors& tensors, const Attributes& attributes,
                const Request& request) {
  validate(tensors, attributes);
  BackwardTensors t = tensors;
  spread_over_heads(t.grad_sinks);
  return choose_and_run(
      t, Pass::kBackward, attributes, request, [&](const Backend& backend, const Problem& problem) {
        problem.is_degenerate() ? reference::backward(problem, t) : backend.backward(problem, t);
      });
}

}  // namespace sdpa
