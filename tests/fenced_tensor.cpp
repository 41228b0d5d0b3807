// SPDX-License-Identifier: MIT
#include "tests/fenced_tensor.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <utility>

#include "sdpa/element.h"

namespace sdpa::cases {
namespace {

constexpr std::int64_t kHuge = (std::int64_t{1} << 31) + 64;  ///< overflows 32 bits in elements
constexpr std::size_t kLargestFilled = std::size_t{1} << 26;
constexpr std::size_t kGuardBytes = 256;

/// Every float dtype reads NaN here.
constexpr std::byte kInputFill{0xff};
/// float16 reads NaN, the others about -1e37 or less: no result of a case. It differs from the
/// inputs' NaN, so that a copy of padding into padding shows.
constexpr std::byte kOutputFill{0xfd};

/// Where the first element lies and how far its neighbours are, in elements.
struct Placement {
  std::int64_t offset;
  Extents strides;
};

Placement place(const Extents& n, Layout layout) {
  const auto& [batch, heads, rows, columns] = n;
  switch (layout) {
    case Layout::kTransposed:
      return {0, {rows * heads * columns, columns, heads * columns, 1}};
    case Layout::kSliced: {
      const std::int64_t row = columns + 3, head = (rows + 2) * row;
      return {head + row + 2, {(heads + 1) * head, head, row, 1}};
    }
    case Layout::kExpandedBatch:
      return {0, {0, rows * columns, columns, 1}};
    case Layout::kColumnStride: {
      const std::int64_t row = 2 * columns + 1;
      return {1, {heads * rows * row, rows * row, row, 2}};
    }
    case Layout::kHugeRows:
      return {0, {heads * columns, columns, kHuge, 1}};
    case Layout::kHugeHeads:
      return {0, {rows * columns, kHuge, columns, 1}};
    default:
      return {0, {heads * rows * columns, rows * columns, columns, 1}};
  }
}

/// Elements from the first byte of the memory to the end of the last element.
std::int64_t span_of(const Extents& extents, const Placement& place) {
  std::int64_t last = place.offset;
  for (std::size_t dim = 0; dim < 4; ++dim) {
    if (extents[dim] == 0) return place.offset;
    last += (extents[dim] - 1) * place.strides[dim];
  }
  return last + 1;
}

template <typename Function>
void for_each_index(const TensorView& view, Function&& function) {
  for (std::int64_t b = 0; b < view.shape[0]; ++b)
    for (std::int64_t h = 0; h < view.shape[1]; ++h)
      for (std::int64_t r = 0; r < view.shape[2]; ++r)
        for (std::int64_t c = 0; c < view.shape[3]; ++c) function(b, h, r, c);
}

/// A page of arm64 macOS, and a multiple of every other system's: memory that begins with such a
/// page may be shared with a GPU to the end of its last one, which then lies before the fence.
constexpr std::size_t kPageBytes = 16384;

std::byte* round_up_to_page(std::byte* address) {
  const auto number = reinterpret_cast<std::uintptr_t>(address);
  return address + (kPageBytes - number % kPageBytes) % kPageBytes;
}

}  // namespace

FencedMemory::FencedMemory(std::size_t bytes) {
  mapped_ = bytes + 2 * kPageBytes;
  pages_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages_ == MAP_FAILED) throw std::bad_alloc();
  std::byte* fence = round_up_to_page(static_cast<std::byte*>(pages_) + bytes);
  mprotect(fence, kPageBytes, PROT_NONE);
  bytes_ = {fence - bytes, bytes};
}

FencedMemory::FencedMemory(FencedMemory&& other) noexcept { *this = std::move(other); }

FencedMemory& FencedMemory::operator=(FencedMemory&& other) noexcept {
  std::swap(pages_, other.pages_);
  std::swap(mapped_, other.mapped_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

FencedMemory::~FencedMemory() {
  if (pages_ != nullptr) munmap(pages_, mapped_);
}

Tensor::Tensor(DType dtype, const Extents& extents, Layout layout, Role role) {
  const Placement placement = place(extents, layout);
  const std::size_t guard = role == Role::kOutput ? kGuardBytes : 0;
  const auto element = static_cast<std::size_t>(size_bytes(dtype));
  const std::size_t bytes =
      static_cast<std::size_t>(span_of(extents, placement)) * element + 2 * guard;
  memory_ = FencedMemory(bytes);
  view_ = {
      .data = memory_.bytes().data() + guard + static_cast<std::size_t>(placement.offset) * element,
      .dtype = dtype,
      .rank = 4};
  std::ranges::copy(extents, view_.shape.begin());
  std::ranges::copy(placement.strides, view_.strides.begin());
  is_filled_ = bytes <= kLargestFilled;
  fill_ = role == Role::kInput ? kInputFill : kOutputFill;
  reset();
}

void Tensor::reset() {
  if (is_filled_) std::ranges::fill(memory_.bytes(), fill_);
}

std::vector<double> Tensor::values() const {
  std::vector<double> list;
  list.reserve(static_cast<std::size_t>(view_.element_count()));
  for_each_index(view_, [&](auto... index) { list.push_back(read(view_, index...)); });
  return list;
}

void Tensor::assign(std::span<const double> values) {
  std::size_t n = 0;
  for_each_index(view_, [&](auto... index) { write(view_, index..., values[n++]); });
}

void Tensor::fill(double value) {
  for_each_index(view_, [&](auto... index) { write(view_, index..., value); });
}

std::size_t Tensor::byte_offset(std::int64_t b, std::int64_t h, std::int64_t r,
                                std::int64_t c) const {
  const auto first = static_cast<std::byte*>(view_.data) - memory_.bytes().data();
  const auto& stride = view_.strides;
  const std::int64_t element = b * stride[0] + h * stride[1] + r * stride[2] + c * stride[3];
  return static_cast<std::size_t>(first + element * size_bytes(view_.dtype));
}

bool Tensor::is_intact() const {
  if (!is_filled_) return true;
  std::vector<std::byte> rest(memory_.bytes().begin(), memory_.bytes().end());
  for_each_index(view_, [&](auto... index) {
    std::fill_n(rest.begin() + static_cast<std::ptrdiff_t>(byte_offset(index...)),
                size_bytes(view_.dtype), fill_);
  });
  return std::ranges::all_of(rest, [&](std::byte byte) { return byte == fill_; });
}

}  // namespace sdpa::cases
