// SPDX-License-Identifier: MIT
#include "results.h"

#include <algorithm>
#include <cstring>

namespace mps_sdpa {
namespace {

using sdpa::BackwardTensors;
using sdpa::DType;
using sdpa::TensorView;

/// A gradient with the batch of the output, so that what broadcasts is summed afterwards by torch.
nb::object allocate_gradient(TensorView& gradient, const TensorView& input, const TensorView& out,
                             std::int64_t heads, nb::handle device) {
  gradient = sdpa::with_rank(input, out.rank);
  for (int dim = 0; dim < out.rank - 3; ++dim)
    gradient.shape[static_cast<std::size_t>(dim)] = out.shape[static_cast<std::size_t>(dim)];
  if (out.rank >= 3) gradient.shape[static_cast<std::size_t>(out.rank - 3)] = heads;
  return allocate(gradient, order_of(input), device);
}

}  // namespace

DType wide(DType dtype) { return dtype == DType::kFloat64 ? dtype : DType::kFloat32; }

TensorView without_columns(TensorView view, DType dtype) {
  view.dtype = dtype;
  --view.rank;
  return view;
}

nb::object allocate_sum(TensorView& gradient, const TensorView& input, DType dtype,
                        nb::handle device) {
  gradient = input;
  gradient.dtype = wide(dtype);
  nb::object made = allocate(gradient, Order::kRowMajor, device);
  if (device.is_valid()) return made.attr("zero_")();
  std::memset(
      gradient.data, 0,
      static_cast<std::size_t>(gradient.element_count() * sdpa::size_bytes(gradient.dtype)));
  return made;
}

Outputs allocate_outputs(sdpa::ForwardTensors& t, bool want_lse, nb::handle device) {
  Outputs made{.out = allocate(t.out, order_of(t.query), device), .lse = nb::none()};
  if (want_lse) {
    t.lse = without_columns(t.out, wide(t.query.dtype));
    made.lse = allocate(t.lse, Order::kRowMajor, device);
    t.lse = with_column(t.lse);
  }
  return made;
}

nb::list allocate_gradients(BackwardTensors& t, int wanted, nb::handle device) {
  nb::object made[5] = {nb::none(), nb::none(), nb::none(), nb::none(), nb::none()};
  const std::int64_t q_heads = t.out.extent(-3);
  const std::int64_t kv_heads = std::max(t.key.extent(-3), t.value.extent(-3));
  if (wanted & kQuery) made[0] = allocate_gradient(t.grad_query, t.query, t.out, q_heads, device);
  if (wanted & kKey) made[1] = allocate_gradient(t.grad_key, t.key, t.out, kv_heads, device);
  if (wanted & kValue) made[2] = allocate_gradient(t.grad_value, t.value, t.out, kv_heads, device);
  if (wanted & kMask) made[3] = allocate_sum(t.grad_mask, t.mask, t.query.dtype, device);
  if (wanted & kSinks) made[4] = allocate_sum(t.grad_sinks, t.sinks, t.query.dtype, device);
  nb::list list;
  for (nb::object& gradient : made) list.append(std::move(gradient));
  return list;
}

}  // namespace mps_sdpa
