// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "sdpa/dtype.h"

namespace sdpa {

/// Where a tensor's memory lives.
enum class Device : std::uint8_t { kCpu, kMetal, kCuda };

constexpr int kMaxRank = 8;

/// A tensor somebody else owns: a pointer, an element type, and a shape with strides in elements.
/// A stride of 0 broadcasts. A view without data (`data == nullptr` and `rank == 0`) means
/// "absent".
///
/// Inside a back end every view has rank 4, [batch, heads, rows, columns], as `Problem` lays down.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device = Device::kCpu;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> strides{};

  bool is_present() const { return rank > 0; }

  /// The size of a dimension counted from the end: `extent(-1)` is the innermost; 1 where there is
  /// none.
  std::int64_t extent(int from_end) const {
    return rank + from_end < 0 ? 1 : shape[static_cast<std::size_t>(rank + from_end)];
  }

  /// The stride of a dimension counted from the end; 0 where there is none.
  std::int64_t stride(int from_end) const {
    return rank + from_end < 0 ? 0 : strides[static_cast<std::size_t>(rank + from_end)];
  }

  std::int64_t element_count() const;

  /// The address of an element of a rank-4 view.
  template <typename T>
  T* at(std::int64_t batch, std::int64_t head, std::int64_t row, std::int64_t column = 0) const {
    return static_cast<T*>(data) + batch * strides[0] + head * strides[1] + row * strides[2] +
           column * strides[3];
  }
};

/// A row-major view of densely packed memory.
TensorView dense(void* data, DType dtype, std::initializer_list<std::int64_t> shape);

/// The same elements with the shape of the last `rank` dimensions; missing ones have size 1, stride
/// 0.
TensorView with_rank(const TensorView& view, int rank);

/// The view with dimension `dim` (counted from 0) enlarged from 1 to `size` by a stride of 0.
TensorView expanded(TensorView view, int dim, std::int64_t size);

/// "[2, 8, 128, 64]"
std::string shape_string(const TensorView& view);

}  // namespace sdpa
