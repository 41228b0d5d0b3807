// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/tensor.h"

namespace sdpa {

/// One element of a rank-4 view as a double, whatever its dtype.
inline double read(const TensorView& view, std::int64_t batch, std::int64_t head, std::int64_t row,
                   std::int64_t column) {
  switch (view.dtype) {
    case DType::kFloat64:
      return *view.at<double>(batch, head, row, column);
    case DType::kFloat32:
      return *view.at<float>(batch, head, row, column);
    case DType::kFloat16:
      return to_float(*view.at<Float16>(batch, head, row, column));
    case DType::kBFloat16:
      return to_float(*view.at<BFloat16>(batch, head, row, column));
    default:
      return *view.at<bool>(batch, head, row, column);
  }
}

/// Stores a double in the view's dtype; 16-bit ones are rounded by way of float32.
inline void write(const TensorView& view, std::int64_t batch, std::int64_t head, std::int64_t row,
                  std::int64_t column, double value) {
  const auto rounded = static_cast<float>(value);
  switch (view.dtype) {
    case DType::kFloat64:
      *view.at<double>(batch, head, row, column) = value;
      break;
    case DType::kFloat32:
      *view.at<float>(batch, head, row, column) = rounded;
      break;
    case DType::kFloat16:
      *view.at<Float16>(batch, head, row, column) = to_float16(rounded);
      break;
    case DType::kBFloat16:
      *view.at<BFloat16>(batch, head, row, column) = to_bfloat16(rounded);
      break;
    default:
      *view.at<bool>(batch, head, row, column) = value != 0;
  }
}

}  // namespace sdpa
