// SPDX-License-Identifier: MIT
#include "sdpa/metal/staging.h"

#include <cassert>
#include <cstring>

namespace sdpa::metal {

using apple::MTLBuffer;
using apple::Ref;
using apple::send;
using apple::operator""_sel;

namespace {

std::byte* contents(const Ref<MTLBuffer>& buffer) {
  return static_cast<std::byte*>(send<void*>(buffer, "contents"_sel));
}

/// The view without its repetitions: a dimension of stride 0 has one element.
TensorView distinct(TensorView view) {
  for (int dim = 0; dim < view.rank; ++dim) {
    if (view.strides[dim] == 0) view.shape[dim] = 1;
  }
  return view;
}

/// The bytes from the first element to the last.
std::size_t span_bytes(const TensorView& view) {
  std::int64_t last = 0;
  for (int dim = 0; dim < view.rank; ++dim) last += (view.shape[dim] - 1) * view.strides[dim];
  return static_cast<std::size_t>((last + 1) * size_bytes(view.dtype));
}

/// Kernels read the columns of a mask at any distance; those of all else have to be neighbours.
bool has_columns_anywhere(Role role) { return role == Role::kMask || role == Role::kGradMask; }

bool can_be_shared(Role role, const TensorView& view) {
  bool is_forward = true;
  for (int dim = 0; dim < view.rank; ++dim) is_forward &= view.strides[dim] >= 0;
  const bool has_columns = view.strides[3] == 1 || view.shape[3] == 1 || has_columns_anywhere(role);
  return is_forward && has_columns && is_page_aligned(view.data);
}

/// The same shape, with the distinct elements row by row. Memory follows later.
TensorView packed(Role role, TensorView view) {
  view.data = nullptr;
  std::int64_t next = 1;
  for (int dim = view.rank - 1; dim >= 0; --dim) {
    const bool may_repeat = dim < 3 || has_columns_anywhere(role);
    const bool repeats = may_repeat && view.strides[dim] == 0 && view.shape[dim] > 1;
    view.strides[dim] = repeats ? 0 : next;
    next *= repeats ? 1 : view.shape[dim];
  }
  return view;
}

std::byte* address(const TensorView& view, std::int64_t batch, std::int64_t head,
                   std::int64_t row) {
  const std::int64_t offset =
      batch * view.strides[0] + head * view.strides[1] + row * view.strides[2];
  return static_cast<std::byte*>(view.data) + offset * size_bytes(view.dtype);
}

struct Row {
  std::byte* data;
  std::int64_t step;  // bytes from element to element
};

void copy_row(Row from, Row to, std::int64_t count, std::size_t bytes) {
  const auto width = static_cast<std::int64_t>(bytes);
  if (from.step == width && to.step == width) {
    std::memcpy(to.data, from.data, static_cast<std::size_t>(count) * bytes);
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(to.data + i * to.step, from.data + i * from.step, bytes);
  }
}

}  // namespace

void copy_elements(const TensorView& from, const TensorView& to) {
  assert(from.rank == 4 && to.rank == 4 && from.dtype == to.dtype);
  const TensorView once = distinct(to);
  const std::int64_t bytes = size_bytes(to.dtype);
  for (std::int64_t b = 0; b < once.shape[0]; ++b) {
    for (std::int64_t h = 0; h < once.shape[1]; ++h) {
      for (std::int64_t r = 0; r < once.shape[2]; ++r) {
        copy_row({address(from, b, h, r), from.strides[3] * bytes},
                 {address(to, b, h, r), to.strides[3] * bytes}, once.shape[3],
                 static_cast<std::size_t>(bytes));
      }
    }
  }
}

TensorView Staging::stage(Role role, const TensorView& view, Access access) {
  if (!view.is_present()) return view;
  if (can_be_shared(role, view)) {
    buffers_[role] = gpu_.share(view.data, span_bytes(view));
    if (buffers_[role]) return view;
  }
  return pack(role, view, access);
}

TensorView Staging::pack(Role role, const TensorView& view, Access access) {
  TensorView target = packed(role, view);
  buffers_[role] = gpu_.allocate(span_bytes(target));
  target.data = contents(buffers_[role]);
  if (access != Access::kWrite) copy_elements(view, target);
  if (access != Access::kRead) results_.push_back({role, target, view});
  return target;
}

void Staging::allocate(const Scratch& scratch) {
  buffers_[scratch.role] = gpu_.allocate(static_cast<std::size_t>(scratch.bytes));
}

void Staging::finish() const {
  for (const Result& result : results_) copy_elements(result.packed, result.host);
}

}  // namespace sdpa::metal
