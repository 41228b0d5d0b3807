// SPDX-License-Identifier: MIT
//
// Packed sequences: torch's [total, heads, dim] as the library's [heads, total, dim].
#include "sdpa/packed.h"

#include <nanobind/stl/vector.h>

#include <utility>

#include "calls.h"
#include "packed.h"
#include "results.h"

namespace mps_sdpa {
namespace {

using sdpa::BackwardTensors;
using sdpa::Choice;
using sdpa::ForwardTensors;
using sdpa::TensorView;
using Starts = std::vector<std::int64_t>;

/// The first two dimensions exchanged: rows and heads.
TensorView swapped(TensorView view) {
  if (view.rank < 2) return view;
  std::swap(view.shape[0], view.shape[1]);
  std::swap(view.strides[0], view.strides[1]);
  return view;
}

ForwardTensors packed_inputs(nb::handle query, nb::handle key, nb::handle value, nb::handle sinks) {
  return {.query = swapped(view_of(query, "q")),
          .key = swapped(view_of(key, "k")),
          .value = swapped(view_of(value, "v")),
          .sinks = view_of(sinks, "sinks")};
}

/// A new tensor [total, heads, dim] for a view [heads, total, dim].
nb::object allocate_packed(TensorView& view) {
  TensorView rows = swapped(view);
  nb::object made = allocate(rows, Order::kRowMajor);
  view = swapped(rows);
  return made;
}

/// (out, lse or None, Choice or None); None for tensors that are not on the CPU.
nb::object forward_packed(nb::handle query, nb::handle key, nb::handle value, nb::handle sinks,
                          Starts query_starts, Starts key_starts, const Options& options,
                          bool want_lse) {
  ForwardTensors t = packed_inputs(query, key, value, sinks);
  if (t.query.device != sdpa::Device::kCpu) return nb::none();
  t.out = t.query;
  t.out.shape[2] = t.value.extent(-1);
  nb::object out = allocate_packed(t.out), lse = nb::none();
  if (want_lse) {
    t.lse = without_columns(t.out, wide(t.query.dtype));
    lse = allocate(t.lse, Order::kRowMajor);
    t.lse = with_column(t.lse);
  }
  const sdpa::Packing packing{std::move(query_starts), std::move(key_starts)};
  Choice choice;
  {
    const nb::gil_scoped_release unlocked;
    choice = sdpa::forward_packed(t, packing, options.attributes, options.request);
  }
  if (choice.backend != nullptr) count_call(choice.backend->name());
  return nb::make_tuple(out, lse, remarkable(std::move(choice), options));
}

/// Gradients of query, key, value and sinks, None where not in `wanted`, a bit each. `saved` is
/// (query, key, value, sinks, out, lse).
nb::list backward_packed(nb::tuple saved, Starts query_starts, Starts key_starts,
                         nb::handle grad_out, nb::handle grad_lse, const Options& options,
                         int wanted) {
  const ForwardTensors in = packed_inputs(saved[0], saved[1], saved[2], saved[3]);
  BackwardTensors t{.query = in.query,
                    .key = in.key,
                    .value = in.value,
                    .sinks = in.sinks,
                    .out = swapped(view_of(saved[4], "out")),
                    .lse = with_column(view_of(saved[5], "lse")),
                    .grad_out = swapped(view_of(grad_out, "grad_out")),
                    .grad_lse = with_column(view_of(grad_lse, "grad_lse"))};
  nb::object made[4] = {nb::none(), nb::none(), nb::none(), nb::none()};
  TensorView* const gradients[3] = {&t.grad_query, &t.grad_key, &t.grad_value};
  const TensorView* const inputs[3] = {&t.query, &t.key, &t.value};
  for (int n = 0; n < 3; ++n) {
    if (!(wanted >> n & 1)) continue;
    *gradients[n] = *inputs[n];
    made[n] = allocate_packed(*gradients[n]);
  }
  if (wanted & 8) made[3] = allocate_sum(t.grad_sinks, t.sinks, t.query.dtype);
  const sdpa::Packing packing{std::move(query_starts), std::move(key_starts)};
  {
    const nb::gil_scoped_release unlocked;
    sdpa::backward_packed(t, packing, options.attributes, options.request);
  }
  nb::list list;
  for (nb::object& gradient : made) list.append(std::move(gradient));
  return list;
}

}  // namespace

void bind_packed(nb::module_& m) {
  using nb::arg;
  m.def("forward_packed", &forward_packed, arg("query"), arg("key"), arg("value"),
        arg("sinks").none(), arg("query_starts"), arg("key_starts"), arg("options"),
        arg("want_lse"));
  m.def("backward_packed", &backward_packed, arg("saved"), arg("query_starts"), arg("key_starts"),
        arg("grad_out"), arg("grad_lse").none(), arg("options"), arg("wanted"));
}

}  // namespace mps_sdpa
