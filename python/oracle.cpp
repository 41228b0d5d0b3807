// SPDX-License-Identifier: MIT
#include "oracle.h"

#include <array>

#include "options.h"
#include "sdpa/reference.h"
#include "sdpa/threads.h"
#include "tensors.h"

namespace mps_sdpa {
namespace {

using sdpa::Problem;
using sdpa::TensorView;

/// A view of rank up to 4 as [batch, heads, rows, columns] with broadcast dimensions enlarged.
TensorView spread(const TensorView& view, std::array<std::int64_t, 4> sizes) {
  if (!view.is_present()) return view;
  TensorView result = sdpa::with_rank(view, 4);
  for (int dim = 0; dim < 4; ++dim)
    result = sdpa::expanded(result, dim, sizes[static_cast<std::size_t>(dim)]);
  return result;
}

/// [heads] as [1, heads, 1, 1].
TensorView spread_heads(const TensorView& view) {
  if (!view.is_present()) return view;
  TensorView result = sdpa::with_rank(view, 4);
  std::swap(result.shape[1], result.shape[3]);
  std::swap(result.strides[1], result.strides[3]);
  return result;
}

template <typename Tensors>
void spread_inputs(Tensors& t, const Problem& p) {
  t.query = spread(t.query, {p.batch, p.q_heads, p.q_len, p.qk_dim});
  t.key = spread(t.key, {p.batch, p.kv_heads, p.kv_len, p.qk_dim});
  t.value = spread(t.value, {p.batch, p.kv_heads, p.kv_len, p.v_dim});
  t.mask = spread(t.mask, {p.batch, p.q_heads, p.q_len, p.kv_len});
  t.sinks = spread_heads(t.sinks);
}

/// Writes into `out` and, if given, `lse`. `in` is (query, key, value, mask, sinks), of rank up to
/// 4.
void forward(nb::tuple in, const Options& options, nb::handle out, nb::handle lse) {
  sdpa::ForwardTensors t = inputs_of(in[0], in[1], in[2], in[3], in[4]);
  const Problem problem = sdpa::make_problem(t, options.attributes);
  spread_inputs(t, problem);
  t.out = sdpa::with_rank(view_of(out, "out"), 4);
  if (!lse.is_none()) t.lse = sdpa::with_rank(with_column(view_of(lse, "lse")), 4);
  const nb::gil_scoped_release unlocked;
  sdpa::reference::forward(problem, t);
}

/// Writes the gradients (query, key, value, mask, sinks); None is not computed. Those of the mask
/// and the sinks are added to what is there.
void backward(nb::tuple in, const Options& options, nb::handle grad_out, nb::handle grad_lse,
              nb::tuple gradients) {
  const sdpa::ForwardTensors given = inputs_of(in[0], in[1], in[2], in[3], in[4]);
  const Problem problem = sdpa::make_problem(given, options.attributes);
  sdpa::BackwardTensors t;
  t.query = given.query, t.key = given.key, t.value = given.value, t.mask = given.mask;
  t.sinks = given.sinks;
  spread_inputs(t, problem);
  const auto rank4 = [](nb::handle tensor, const char* argument) {
    const TensorView view = view_of(tensor, argument);
    return view.is_present() ? sdpa::with_rank(view, 4) : view;
  };
  t.grad_out = rank4(grad_out, "grad_out");
  if (!grad_lse.is_none())
    t.grad_lse = sdpa::with_rank(with_column(view_of(grad_lse, "grad_lse")), 4);
  t.grad_query = rank4(gradients[0], "the gradient of query");
  t.grad_key = rank4(gradients[1], "the gradient of key");
  t.grad_value = rank4(gradients[2], "the gradient of value");
  const TensorView grad_mask = view_of(gradients[3], "the gradient of attn_mask");
  t.grad_mask = spread(grad_mask, {problem.batch, problem.q_heads, problem.q_len, problem.kv_len});
  t.grad_sinks = spread_heads(view_of(gradients[4], "the gradient of sinks"));
  const nb::gil_scoped_release unlocked;
  sdpa::reference::backward(problem, t);
}

/// Fills a bool tensor [batch * q_heads, q_len, kv_len] with which probabilities survive dropout.
void keep_mask(const Options& options, nb::handle out) {
  const TensorView mask = view_of(out, "out");
  const nb::gil_scoped_release unlocked;
  sdpa::parallel_for(mask.shape[0] * mask.shape[1], [&](std::int64_t task, int) {
    const std::int64_t head = task / mask.shape[1], row = task % mask.shape[1];
    bool* kept = static_cast<bool*>(mask.data) + task * mask.shape[2];
    for (std::int64_t key = 0; key < mask.shape[2]; ++key)
      kept[key] = sdpa::reference::is_kept(options.attributes.dropout, head, row, key);
  });
}

}  // namespace

void bind_oracle(nb::module_& m) {
  using nb::arg;
  m.def("reference_forward", &forward, arg("inputs"), arg("options"), arg("out"),
        arg("lse").none());
  m.def("reference_backward", &backward, arg("inputs"), arg("options"), arg("grad_out"),
        arg("grad_lse").none(), arg("gradients"));
  m.def("keep_mask", &keep_mask, arg("options"), arg("out"));
}

}  // namespace mps_sdpa
