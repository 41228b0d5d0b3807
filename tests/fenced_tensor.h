// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "sdpa/tensor.h"
#include "tests/cases.h"

// Tensors in memory that shows every access out of bounds.

namespace sdpa::cases {

/// Pages of its own. They end right before a page that cannot be touched, so that reading past the
/// last element crashes in any build.
class FencedMemory {
 public:
  FencedMemory() = default;
  explicit FencedMemory(std::size_t bytes);
  FencedMemory(FencedMemory&& other) noexcept;
  FencedMemory& operator=(FencedMemory&& other) noexcept;
  ~FencedMemory();

  std::span<std::byte> bytes() const { return bytes_; }

 private:
  void* pages_ = nullptr;
  std::size_t mapped_ = 0;
  std::span<std::byte> bytes_;
};

/// What a tensor is for: inputs lie amid NaN and end at a fence; outputs begin as a huge number or
/// NaN and have guard words around them.
enum class Role : std::uint8_t { kInput, kOutput };

using Extents = std::array<std::int64_t, 4>;

/// A tensor of rank 4 that owns its memory.
class Tensor {
 public:
  Tensor() = default;  ///< absent
  Tensor(DType dtype, const Extents& extents, Layout layout, Role role);

  const TensorView& view() const { return view_; }

  /// All elements in row-major order, as doubles.
  std::vector<double> values() const;

  /// Rounds `values`, in row-major order, to the dtype.
  void assign(std::span<const double> values);

  void fill(double value);

  /// All bytes as the constructor leaves them.
  void reset();

  /// Whether all bytes that are no element are as the constructor left them.
  bool is_intact() const;

 private:
  std::size_t byte_offset(std::int64_t b, std::int64_t h, std::int64_t r, std::int64_t c) const;

  TensorView view_;
  FencedMemory memory_;
  std::byte fill_{};
  bool is_filled_ = false;  ///< not where the memory is virtual
};

}  // namespace sdpa::cases
