// SPDX-License-Identifier: MIT
#include "tests/case_data.h"

#include <cmath>
#include <limits>
#include <random>

#include "sdpa/element.h"
#include "sdpa/reference.h"

namespace sdpa::cases {
namespace {

/// Normal numbers; the sequence depends on the seed alone.
class Source {
 public:
  explicit Source(std::uint64_t seed) : generator_(seed) {}

  double normal() { return normal_(generator_); }

  double uniform() { return uniform_(generator_); }

  Tensor tensor(DType dtype, const Extents& extents, Layout layout) {
    Tensor result(dtype, extents, layout, Role::kInput);
    std::vector<double> values(static_cast<std::size_t>(result.view().element_count()));
    for (double& value : values) value = normal();
    result.assign(values);
    return result;
  }

 private:
  std::mt19937_64 generator_;
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_;
};

/// Whether the pattern hides a pair of the mask's `plane`, a head of a batch entry; a random one is
/// thrown by `source`.
bool hides(const MaskSpec& mask, std::int64_t plane, std::int64_t row, std::int64_t column,
           std::int64_t columns, Source& source) {
  constexpr std::int64_t kBlock = 32;
  constexpr double kHiddenShare = 0.2, kHiddenShareAdditive = 0.1;
  switch (mask.pattern) {
    case MaskPattern::kRandom:
      return source.uniform() < (mask.dtype == DType::kBool ? kHiddenShare : kHiddenShareAdditive);
    case MaskPattern::kEmptyRow:
      return row == 0;
    case MaskPattern::kEmptyRows:
      return row % 3 == 0;
    case MaskPattern::kTail:
      return column >= columns - columns / 3;
    case MaskPattern::kBlocks: {
      const std::int64_t turn = (plane + row / kBlock + column / kBlock) % 3;
      return turn == 0 || (turn == 1 && source.uniform() < 0.5);
    }
    case MaskPattern::kAll:
      return true;
    default:
      return false;
  }
}

/// The layout that a mask, a log-sum-exp and their gradients have in a case; a batch of stride 0
/// is for key, value and the gradient of the output alone.
Layout own_layout(Layout layout) {
  return layout == Layout::kExpandedBatch ? Layout::kContiguous : layout;
}

Tensor make_mask(const Case& spec, Source& source) {
  const MaskExtents n = mask_extents(spec);
  Tensor mask(spec.mask.dtype, {n.batch, n.heads, n.rows, n.columns}, own_layout(spec.layout),
              Role::kInput);
  std::vector<double> values;
  for (std::int64_t row = 0; row < n.batch * n.heads * n.rows; ++row)
    for (std::int64_t column = 0; column < n.columns; ++column) {
      const bool hidden = hides(spec.mask, row / n.rows, row % n.rows, column, n.columns, source);
      values.push_back(spec.mask.dtype == DType::kBool ? !hidden
                       : hidden                        ? -INFINITY
                                                       : -2 * source.uniform());
    }
  mask.assign(values);
  return mask;
}

/// A view enlarged to the given extents by strides of 0; absent stays absent.
TensorView broadcast(TensorView view, const Extents& extents) {
  for (int dim = 0; view.is_present() && dim < 4; ++dim)
    view = expanded(view, dim, extents[static_cast<std::size_t>(dim)]);
  return view;
}

}  // namespace

Problem problem_of(const Case& s, std::uint64_t seed) {
  const MaskKind mask = s.mask.shape == MaskShape::kNone ? MaskKind::kNone
                        : s.mask.dtype == DType::kBool   ? MaskKind::kBool
                                                         : MaskKind::kAdditive;
  const Attributes a = attributes(s, seed);
  return {
      .dtype = s.dtype,
      .batch = s.batch,
      .q_heads = s.q_heads,
      .kv_heads = s.kv_heads,
      .q_len = s.q_len,
      .kv_len = s.kv_len,
      .qk_dim = s.qk_dim,
      .v_dim = s.v_dim,
      .scale = a.scale.value_or(s.qk_dim > 0 ? 1 / std::sqrt(static_cast<double>(s.qk_dim)) : 1),
      .causal = a.causal,
      .window = a.window,
      .softcap = a.softcap,
      .mask = mask,
      .mask_dtype = s.mask.dtype,
      .mask_varies_by_query = mask != MaskKind::kNone && mask_extents(s).rows != 1,
      .has_sinks = s.sinks,
      .dropout = a.dropout};
}

CaseData::CaseData(const Case& s, std::uint64_t seed) : spec(s), problem(problem_of(s, seed)) {
  Source source(seed);
  const Extents q{s.batch, s.q_heads, s.q_len, s.qk_dim},
      k{s.batch, s.kv_heads, s.kv_len, s.qk_dim}, v{s.batch, s.kv_heads, s.kv_len, s.v_dim},
      o{s.batch, s.q_heads, s.q_len, s.v_dim}, rows{s.batch, s.q_heads, s.q_len, 1},
      heads{1, s.q_heads, 1, 1};
  const Layout own = own_layout(s.layout);
  const DType sum_dtype = s.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  query = source.tensor(s.dtype, q, own);
  key = source.tensor(s.dtype, k, s.layout);
  value = source.tensor(s.dtype, v, s.layout);
  grad_out = source.tensor(s.dtype, o, s.layout);
  out = Tensor(s.dtype, o, own, Role::kOutput);
  lse = Tensor(sum_dtype, rows, own, Role::kOutput);
  grad_query = Tensor(s.dtype, q, own, Role::kOutput);
  grad_key = Tensor(s.dtype, k, own, Role::kOutput);
  grad_value = Tensor(s.dtype, v, own, Role::kOutput);
  if (s.grad_lse) grad_lse = source.tensor(sum_dtype, rows, own);
  if (s.sinks) {
    sinks = source.tensor(s.dtype, heads, Layout::kContiguous);
    grad_sinks = Tensor(sum_dtype, heads, Layout::kContiguous, Role::kOutput);
  }
  if (problem.mask != MaskKind::kNone) mask = make_mask(s, source);
  if (problem.mask == MaskKind::kAdditive) {
    const auto& n = mask.view().shape;
    grad_mask = Tensor(sum_dtype, {n[0], n[1], n[2], n[3]}, own, Role::kOutput);
  }
  reset_outputs();
}

void CaseData::reset_outputs() {
  for (Tensor* output : {&out, &lse, &grad_query, &grad_key, &grad_value, &grad_mask, &grad_sinks})
    output->reset();
  grad_mask.fill(0);
  grad_sinks.fill(0);
}

ForwardTensors CaseData::forward_tensors() const {
  const Extents scores{spec.batch, spec.q_heads, spec.q_len, spec.kv_len};
  return {.query = query.view(),
          .key = key.view(),
          .value = value.view(),
          .mask = broadcast(mask.view(), scores),
          .sinks = sinks.view(),
          .out = out.view(),
          .lse = lse.view()};
}

BackwardTensors CaseData::backward_tensors() const {
  const Extents scores{spec.batch, spec.q_heads, spec.q_len, spec.kv_len};
  return {.query = query.view(),
          .key = key.view(),
          .value = value.view(),
          .mask = broadcast(mask.view(), scores),
          .sinks = sinks.view(),
          .out = out.view(),
          .lse = lse.view(),
          .grad_out = grad_out.view(),
          .grad_lse = grad_lse.view(),
          .grad_query = grad_query.view(),
          .grad_key = grad_key.view(),
          .grad_value = grad_value.view(),
          .grad_mask = broadcast(grad_mask.view(), scores),
          .grad_sinks = grad_sinks.view()};
}

void fill_rows(const TensorView& view, std::int64_t first, std::int64_t last, double value) {
  for (std::int64_t b = 0; b < view.shape[0]; ++b)
    for (std::int64_t h = 0; h < view.shape[1]; ++h)
      for (std::int64_t r = first; r < last; ++r)
        for (std::int64_t c = 0; c < view.shape[3]; ++c) write(view, b, h, r, c, value);
}

void poison_hidden_keys(CaseData& data) {
  const Case& spec = data.spec;
  if (spec.mask.shape == MaskShape::kNone || spec.mask.pattern != MaskPattern::kTail) return;
  const std::int64_t first = spec.kv_len - spec.kv_len / 3;
  for (const Tensor* tensor : {&data.key, &data.value})
    fill_rows(tensor->view(), first, spec.kv_len, std::numeric_limits<double>::quiet_NaN());
}

Expected expected(const CaseData& data) {
  Case spec = data.spec;
  spec.dtype = DType::kFloat64;
  spec.layout = Layout::kContiguous;
  if (spec.mask.dtype != DType::kBool) spec.mask.dtype = DType::kFloat64;
  CaseData wide(spec, data.problem.dropout.seed);
  for (Tensor CaseData::* input :
       {&CaseData::query, &CaseData::key, &CaseData::value, &CaseData::mask, &CaseData::sinks,
        &CaseData::grad_out, &CaseData::grad_lse})
    (wide.*input).assign((data.*input).values());
  reference::forward(wide.problem, wide.forward_tensors());
  reference::backward(wide.problem, wide.backward_tensors());
  return {.out = wide.out.values(),
          .lse = wide.lse.values(),
          .grad_query = wide.grad_query.values(),
          .grad_key = wide.grad_key.values(),
          .grad_value = wide.grad_value.values(),
          .grad_mask = wide.grad_mask.values(),
          .grad_sinks = wide.grad_sinks.values()};
}

}  // namespace sdpa::cases
