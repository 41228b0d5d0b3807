// SPDX-License-Identifier: MIT
#include "sdpa/tensor.h"

#include <algorithm>

namespace sdpa {

std::int64_t TensorView::element_count() const {
  std::int64_t count = rank > 0 ? 1 : 0;
  for (int dim = 0; dim < rank; ++dim) count *= shape[dim];
  return count;
}

TensorView dense(void* data, DType dtype, std::initializer_list<std::int64_t> shape) {
  TensorView view{.data = data, .dtype = dtype, .rank = static_cast<int>(shape.size())};
  std::copy(shape.begin(), shape.end(), view.shape.begin());
  std::int64_t stride = 1;
  for (int dim = view.rank - 1; dim >= 0; --dim) {
    view.strides[dim] = stride;
    stride *= view.shape[dim];
  }
  return view;
}

TensorView with_rank(const TensorView& view, int rank) {
  TensorView result = view;
  result.rank = rank;
  for (int dim = 0; dim < rank; ++dim) {
    result.shape[dim] = view.extent(dim - rank);
    result.strides[dim] = view.stride(dim - rank);
  }
  return result;
}

TensorView expanded(TensorView view, int dim, std::int64_t size) {
  if (view.shape[dim] != size) {
    view.shape[dim] = size;
    view.strides[dim] = 0;
  }
  return view;
}

std::string shape_string(const TensorView& view) {
  std::string text = "[";
  for (int dim = 0; dim < view.rank; ++dim)
    text += (dim ? ", " : "") + std::to_string(view.shape[dim]);
  return text + "]";
}

}  // namespace sdpa
