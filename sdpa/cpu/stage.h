// SPDX-License-Identifier: MIT
#pragma once

// Between the caller's tensors and the layout the kernels work on. Queries are transposed once a
// block. Keys and values of float32 with unit stride are read in place; everything else (16-bit
// elements, other strides) is staged a block of keys at a time:
//
//   float         keys[key][qk_dim], values[key][v_dim]
//   BFloat16Pair  keys[key][qk_dim / 2], values[key / 2][v_dim] with two keys side by side; an odd
//                 last dimension or key is paired with zero

#include "sdpa/cpu/lanes.h"
#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

/// Where a block of keys and its values are, whichever way they came there.
template <typename Element>
struct KeyBlock {
  const Element* keys = nullptr;
  const Element* values = nullptr;
  std::int64_t key_stride = 0;    ///< from a key to the next
  std::int64_t value_stride = 0;  ///< from a key (a pair of keys) to the next
  std::int64_t first = 0;         ///< the block's first key in the tensor
};

template <typename Element>
constexpr int kElementsPerWord = 1;
template <>
constexpr int kElementsPerWord<BFloat16Pair> = 2;

template <typename Element>
SDPA_INLINE constexpr std::int64_t words(std::int64_t count) {
  return (count + kElementsPerWord<Element> - 1) / kElementsPerWord<Element>;
}

/// to[c] = from[c * stride] as float.
template <class S, typename Data>
SDPA_INLINE void convert_row(const Data* from, std::int64_t stride, std::int64_t count, float* to) {
  for (std::int64_t c = 0; c < count; c += S::kLanes) {
    const int width = count - c < S::kLanes ? static_cast<int>(count - c) : S::kLanes;
    if (stride == 1 && width == S::kLanes) {
      S::store(to + c, S::load(from + c));
      continue;
    }
    Data part[S::kLanes] = {};
    for (int i = 0; i < width; ++i) part[i] = from[(c + i) * stride];
    S::store_part(to + c, S::load(part), width);
  }
}

/// Rows [begin, end) of a [rows, columns] matrix as dense floats with `columns` to a row.
template <class S, typename Data>
void convert_rows(const Data* from, std::int64_t row_stride, std::int64_t column_stride, int begin,
                  int end, std::int64_t columns, float* to) {
  for (int row = begin; row < end; ++row)
    convert_row<S>(from + row * row_stride, column_stride, columns, to + row * columns);
}

SDPA_INLINE BFloat16Pair make_pair(BFloat16 low, BFloat16 high) {
  return {low.bits | static_cast<std::uint32_t>(high.bits) << 16};
}

/// Rows [begin, end) with neighbouring columns in pairs.
template <class S>
void pair_columns(const BFloat16* from, std::int64_t row_stride, std::int64_t column_stride,
                  int begin, int end, std::int64_t columns, BFloat16Pair* to) {
  const std::int64_t width = words<BFloat16Pair>(columns);
  for (int row = begin; row < end; ++row)
    for (std::int64_t c = 0; c < columns; c += 2) {
      const BFloat16* at = from + row * row_stride + c * column_stride;
      to[row * width + c / 2] = make_pair(at[0], c + 1 < columns ? at[column_stride] : BFloat16{0});
    }
}

/// Rows [begin, end) with neighbouring rows in pairs; begin is even.
template <class S>
void pair_rows(const BFloat16* from, std::int64_t row_stride, std::int64_t column_stride, int begin,
               int end, std::int64_t columns, BFloat16Pair* to) {
  for (int row = begin; row < end; row += 2) {
    const BFloat16* low = from + row * row_stride;
    const BFloat16* high = low + row_stride;
    BFloat16Pair* pairs = to + row / 2 * columns;
    if (row + 1 == end)
      for (std::int64_t c = 0; c < columns; ++c)
        pairs[c] = make_pair(low[c * column_stride], BFloat16{0});
    else if (column_stride == 1)
      for (std::int64_t c = 0; c < columns; ++c) pairs[c] = make_pair(low[c], high[c]);
    else
      for (std::int64_t c = 0; c < columns; ++c)
        pairs[c] = make_pair(low[c * column_stride], high[c * column_stride]);
  }
}

/// Whether bfloat16 rows can be read as pairs where they lie.
SDPA_INLINE bool lie_in_pairs(const void* data, std::int64_t row_stride, std::int64_t column_stride,
                              std::int64_t columns) {
  return column_stride == 1 && row_stride % 2 == 0 && columns % 2 == 0 &&
         reinterpret_cast<std::uintptr_t>(data) % alignof(BFloat16Pair) == 0;
}

/// The address of (batch, head, row, 0) of a rank-4 view.
template <typename Data>
SDPA_INLINE Data* address(const TensorView& view, std::int64_t batch, std::int64_t head,
                          std::int64_t row) {
  return static_cast<Data*>(view.data) + batch * view.strides[0] + head * view.strides[1] +
         row * view.strides[2];
}

/// Memory for one staged block.
template <typename Element>
struct StagingBuffers {
  Element* keys = nullptr;
  Element* values = nullptr;
};

/// Keys [first + begin, first + end) ready for a float kernel.
template <class S, typename Data>
KeyBlock<float> stage(const TensorView& key, const TensorView& value, const Lanes& lanes,
                      std::int64_t first, int begin, int end,
                      const StagingBuffers<float>& buffers) {
  KeyBlock<float> block{.first = first};
  const auto place = [&](const TensorView& view, float* buffer, const float*& data,
                         std::int64_t& stride) {
    const Data* from = address<const Data>(view, lanes.batch, lanes.kv_head, first);
    if constexpr (std::is_same_v<Data, float>) {
      if (view.strides[3] == 1 || view.shape[3] == 1) {
        data = from;
        stride = view.strides[2];
        return;
      }
    }
    convert_rows<S>(from, view.strides[2], view.strides[3], begin, end, view.shape[3], buffer);
    data = buffer;
    stride = view.shape[3];
  };
  place(key, buffers.keys, block.keys, block.key_stride);
  place(value, buffers.values, block.values, block.value_stride);
  return block;
}

/// Keys [first + begin, first + end) ready for a kernel on pairs.
template <class S, typename Data>
KeyBlock<BFloat16Pair> stage(const TensorView& key, const TensorView& value, const Lanes& lanes,
                             std::int64_t first, int begin, int end,
                             const StagingBuffers<BFloat16Pair>& buffers) {
  const auto* k = address<const BFloat16>(key, lanes.batch, lanes.kv_head, first);
  const auto* v = address<const BFloat16>(value, lanes.batch, lanes.kv_head, first);
  KeyBlock<BFloat16Pair> block{.keys = buffers.keys,
                               .values = buffers.values,
                               .key_stride = words<BFloat16Pair>(key.shape[3]),
                               .value_stride = value.shape[3],
                               .first = first};
  if (lie_in_pairs(k, key.strides[2], key.strides[3], key.shape[3])) {
    block.keys = reinterpret_cast<const BFloat16Pair*>(k);
    block.key_stride = key.strides[2] / 2;
  } else {
    pair_columns<S>(k, key.strides[2], key.strides[3], begin, end, key.shape[3], buffers.keys);
  }
  pair_rows<S>(v, value.strides[2], value.strides[3], begin, end, value.shape[3], buffers.values);
  return block;
}

/// Addresses of the lanes' rows; rows whose elements are not neighbours are gathered into `buffer`
/// ([lanes][columns]).
template <typename Data>
void find_rows(const TensorView& view, const Lanes& lanes, Data* buffer, const Data** rows) {
  const std::int64_t columns = view.shape[3], stride = view.strides[3];
  for (int lane = 0; lane < lanes.count; ++lane) {
    const auto* row = row_of<const Data>(view, lanes, lane);
    rows[lane] = row;
    if (stride == 1 || columns == 1) continue;
    rows[lane] = buffer + lane * columns;
    for (std::int64_t c = 0; c < columns; ++c) buffer[lane * columns + c] = row[c * stride];
  }
}

/// to[d][lane] = scale * query[lane][d]; the lanes that fill the last vector are zero.
template <class S, typename Data>
void stage_queries(const Data* const* rows, int lanes, std::int64_t columns, float scale,
                   float* to) {
  transpose_in<S>(rows, lanes, columns, scale, to, S::kLanes * S::kColumns);
}

/// The same in pairs of dimensions, unscaled: bfloat16 has no room for a factor. Neighbours in a
/// row are a pair as they lie, so that words are transposed (one at a time, a pair of elements
/// after the other, took 2 % of the pass at D 128).
template <class S>
void stage_queries(const BFloat16* const* rows, int lanes, std::int64_t columns, float,
                   BFloat16Pair* to) {
  constexpr int kWidth = S::kLanes * S::kColumns;
  const float* words[kWidth];
  for (int lane = 0; lane < lanes; ++lane) words[lane] = reinterpret_cast<const float*>(rows[lane]);
  transpose_in<S>(words, lanes, columns / 2, reinterpret_cast<float*>(to), kWidth,
                  [](typename S::Vec v) SDPA_INLINE_LAMBDA { return v; });
  if (columns % 2 == 0) return;
  for (int lane = 0; lane < kWidth; ++lane)
    to[columns / 2 * kWidth + lane] =
        lane < lanes ? make_pair(rows[lane][columns - 1], BFloat16{0}) : BFloat16Pair{0};
}

/// A staged element as a float; `half` picks one of a pair.
SDPA_INLINE float element_at(float value, int) { return value; }

SDPA_INLINE float element_at(BFloat16Pair pair, int half) {
  return __builtin_bit_cast(float, half == 0 ? pair.bits << 16 : pair.bits & 0xffff0000u);
}

/// All ones where every element is finite.
template <class S>
SDPA_INLINE std::uint32_t finite_lanes(const float* values, std::int64_t count) {
  std::uint32_t finite = ~0u;
  for (std::int64_t d = 0; d < count; d += S::kLanes) {
    const int width = count - d < S::kLanes ? static_cast<int>(count - d) : S::kLanes;
    const auto v = width == S::kLanes ? S::load(values + d) : S::load_part(values + d, width);
    finite &= S::to_bits(S::is_finite(v)) | ~((1u << S::kLanes) - 1u);
  }
  return finite;
}

template <class S>
SDPA_INLINE std::uint32_t finite_lanes(const BFloat16Pair* values, std::int64_t count) {
  std::uint32_t infinite = 0;
  for (std::int64_t d = 0; d < count; ++d) {
    const std::uint32_t bits = values[d].bits;
    infinite |= static_cast<std::uint32_t>((bits & 0x7f80u) == 0x7f80u) |
                static_cast<std::uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return ~infinite;
}

}  // namespace sdpa::cpu
