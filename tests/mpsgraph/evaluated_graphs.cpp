// SPDX-License-Identifier: MIT
#include "tests/mpsgraph/evaluated_graphs.h"

#include "sdpa/element.h"
#include "sdpa/reference.h"

namespace sdpa::values {
namespace {

using metal::Role;

TensorView distinct_of(TensorView view) {
  for (std::size_t dim = 0; dim < 4; ++dim) {
    if (view.strides[dim] == 0) view.shape[dim] = 1;
  }
  return view;
}

template <typename Visit>
void for_each(const TensorView& view, const Visit& visit) {
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    for (std::int64_t h = 0; h < view.shape[1]; ++h) {
      for (std::int64_t r = 0; r < view.shape[2]; ++r) {
        for (std::int64_t c = 0; c < view.shape[3]; ++c) visit(b, h, r, c);
      }
    }
  }
}

void add(Tensors& inputs, Role role, const TensorView& view) {
  if (view.is_present()) inputs[role] = value_of(view, role == Role::kMask);
}

template <typename AnyTensors>
void add_common(Tensors& inputs, const Problem& problem, const AnyTensors& t) {
  add(inputs, Role::kQuery, t.query);
  add(inputs, Role::kKey, t.key);
  add(inputs, Role::kValue, t.value);
  add(inputs, Role::kMask, t.mask);
  add(inputs, Role::kSinks, t.sinks);
  if (!problem.dropout.is_active()) return;
  const TensorView pairs =
      dense(nullptr, DType::kBool, {problem.batch, problem.q_heads, problem.q_len, problem.kv_len});
  Value keep{Element::kBool, {problem.batch, problem.q_heads, problem.q_len, problem.kv_len}, {}};
  for_each(pairs, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
    keep.data.push_back(reference::is_kept(problem.dropout, b * problem.q_heads + h, i, j));
  });
  inputs[Role::kKeep] = std::move(keep);
}

/// Writes a result, or adds it where gradients are accumulated.
void store(const Tensors& outputs, Role role, const TensorView& view) {
  if (!view.is_present()) return;
  const bool adds = role == Role::kGradMask || role == Role::kGradSinks;
  const TensorView target = adds ? distinct_of(view) : view;
  std::size_t n = 0;
  const Value& value = outputs.at(role);
  for_each(target, [&](std::int64_t b, std::int64_t h, std::int64_t r, std::int64_t c) {
    const double before = adds ? read(target, b, h, r, c) : 0;
    write(target, b, h, r, c, before + value.data.at(n++));
  });
}

}  // namespace

Value value_of(const TensorView& view, bool distinct) {
  const TensorView from = distinct ? distinct_of(view) : view;
  Value value{metal::element_of(view.dtype),
              {from.shape[0], from.shape[1], from.shape[2], from.shape[3]},
              {}};
  for_each(from, [&](std::int64_t b, std::int64_t h, std::int64_t r, std::int64_t c) {
    value.data.push_back(read(from, b, h, r, c));
  });
  return value;
}

std::vector<std::string> EvaluatedGraphs::unsupported(const Problem& problem, Pass) const {
  return metal::graph_refusals(problem, limits_);
}

std::string EvaluatedGraphs::explain(const Problem&, Pass) const { return "evaluated"; }

template <typename AnyTensors>
metal::GraphSpec EvaluatedGraphs::spec_for(const Problem& problem,
                                           const AnyTensors& tensors) const {
  metal::GraphSpec spec = metal::spec_of(problem, tensors);
  spec.limits = limits_;
  spec.has_descriptor = has_descriptor_;
  return spec;
}

void EvaluatedGraphs::forward(const Problem& problem, const ForwardTensors& tensors) const {
  for (const metal::Piece& piece : metal::pieces_of(spec_for(problem, tensors))) {
    const Problem part = metal::restricted(problem, piece);
    const ForwardTensors t = metal::restricted(problem, tensors, piece);
    Tensors inputs;
    add_common(inputs, part, t);
    const Tensors outputs = evaluate(metal::make_graph(spec_for(part, t)), inputs);
    store(outputs, Role::kOut, t.out);
    store(outputs, Role::kLse, t.lse);
  }
}

void EvaluatedGraphs::backward(const Problem& problem, const BackwardTensors& tensors) const {
  for (const metal::Piece& piece : metal::pieces_of(spec_for(problem, tensors))) {
    const Problem part = metal::restricted(problem, piece);
    const BackwardTensors t = metal::restricted(problem, tensors, piece);
    Tensors inputs;
    add_common(inputs, part, t);
    add(inputs, Role::kGradOut, t.grad_out);
    add(inputs, Role::kGradLse, t.grad_lse);
    const Tensors outputs = evaluate(metal::make_graph(spec_for(part, t)), inputs);
    store(outputs, Role::kGradQuery, t.grad_query);
    store(outputs, Role::kGradKey, t.grad_key);
    store(outputs, Role::kGradValue, t.grad_value);
    store(outputs, Role::kGradMask, t.grad_mask);
    store(outputs, Role::kGradSinks, t.grad_sinks);
  }
}

}  // namespace sdpa::values
