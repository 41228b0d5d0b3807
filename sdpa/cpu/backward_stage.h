// SPDX-License-Identifier: MIT
#pragma once

// Between tensors of any dtype and strides and the padded rows of floats that the products work on.
#include <cstdint>

#include "sdpa/cpu/backward_job.h"
#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

/// Rows in memory of our own.
struct StagedRows {
  float* data;
  std::int64_t stride;
};

/// Columns in pieces of a vector: `whole(column)`, then `part(column, count)` for the rest.
template <class S, class Whole, class Part>
SDPA_INLINE void for_vectors(int columns, const Whole& whole, const Part& part) {
  int column = 0;
  for (; column + S::kLanes <= columns; column += S::kLanes) whole(column);
  if (column < columns) part(column, columns - column);
}

/// One row, converted. `poison` becomes NaN where a value is not finite.
template <class S, class Element>
SDPA_INLINE void stage_row(const Element* from, std::int64_t step, int columns, float* to,
                           typename S::Vec& poison) {
  const auto put = [&](int column, typename S::Vec v) SDPA_INLINE_LAMBDA {
    poison = S::multiply_add(S::zero(), v, poison);
    S::store(to + column, v);
  };
  if (step == 1)
    return for_vectors<S>(
        columns, [&](int c) SDPA_INLINE_LAMBDA { put(c, S::load(from + c)); },
        [&](int c, int count) SDPA_INLINE_LAMBDA { put(c, S::load_part(from + c, count)); });
  for (int d = 0; d < columns; ++d) to[d] = to_float(from[d * step]);
  for_vectors<S>(
      columns, [&](int c) SDPA_INLINE_LAMBDA { put(c, S::load(to + c)); },
      [&](int c, int count) SDPA_INLINE_LAMBDA { put(c, S::load_part(to + c, count)); });
}

template <class S, class Element>
bool stage_typed(const TensorRows& from, int padded_rows, const StagedRows& out) {
  typename S::Vec poison = S::zero();
  const std::int64_t written = ceil_div(from.columns, S::kLanes) * S::kLanes;
  for (int row = 0; row < padded_rows; ++row) {
    float* to = out.data + row * out.stride;
    if (row < from.rows)
      stage_row<S>(reinterpret_cast<const Element*>(from.row[row]), from.step, from.columns, to,
                   poison);
    for (std::int64_t c = row < from.rows ? written : 0; c < out.stride; c += S::kLanes)
      S::store(to + c, S::zero());
  }
  return !S::any(S::not_less(poison, S::broadcast(1)));
}

/// Copies rows, converted and padded with zeros to whole rows and to `padded_rows`; says whether
/// all values are finite.
template <class S>
bool stage(const TensorRows& from, int padded_rows, const StagedRows& out) {
  switch (from.dtype) {
    case DType::kFloat16:
      return stage_typed<S, Float16>(from, padded_rows, out);
    case DType::kBFloat16:
      return stage_typed<S, BFloat16>(from, padded_rows, out);
    default:
      return stage_typed<S, float>(from, padded_rows, out);
  }
}

/// Whether rows need no staging: floats side by side, whole vectors. Rows of a group have two
/// strides, one to the next head and one to the next query: both are right where the second row and
/// the last are.
SDPA_INLINE bool lie_as_staged(const TensorRows& from, std::int64_t stride) {
  const std::int64_t bytes = stride * static_cast<std::int64_t>(sizeof(float));
  return from.dtype == DType::kFloat32 && from.step == 1 && from.columns == stride &&
         (from.rows < 2 || (from.row[1] - from.row[0] == bytes &&
                            from.row[from.rows - 1] - from.row[0] == (from.rows - 1) * bytes));
}

/// `count` is a multiple of kLanes.
template <class S>
bool are_finite(const float* data, std::int64_t count) {
  constexpr int kSums = 4;
  typename S::Vec poison[kSums];
  for (auto& each : poison) each = S::zero();
  std::int64_t i = 0;
  for (; i + kSums * S::kLanes <= count; i += kSums * S::kLanes)
    unroll<kSums>([&](auto n) SDPA_INLINE_LAMBDA {
      poison[n] = S::multiply_add(S::zero(), S::load(data + i + n * S::kLanes), poison[n]);
    });
  for (; i < count; i += S::kLanes)
    poison[0] = S::multiply_add(S::zero(), S::load(data + i), poison[0]);
  const auto all = S::add(S::add(poison[0], poison[1]), S::add(poison[2], poison[3]));
  return !S::any(S::not_less(all, S::broadcast(1)));
}

template <class S, class Element, class Round>
void write_row(const float* from, float factor, std::int64_t step, int columns, Element* to,
               const Round& round) {
  const auto scaled = [&](int column) SDPA_INLINE_LAMBDA {
    return S::mul(S::load(from + column), S::broadcast(factor));
  };
  if (step == 1)
    return for_vectors<S>(
        columns, [&](int c) SDPA_INLINE_LAMBDA { S::store(to + c, scaled(c)); },
        [&](int c, int count) SDPA_INLINE_LAMBDA { S::store_part(to + c, scaled(c), count); });
  for (int d = 0; d < columns; ++d) to[d * step] = round(factor * from[d]);
}

template <class S, class Element, class Round>
void write_typed(const StagedRows& sums, float factor, const TensorRows& to, const Round& round) {
  for (int row = 0; row < to.rows; ++row)
    write_row<S>(sums.data + row * sums.stride, factor, to.step, to.columns,
                 reinterpret_cast<Element*>(to.row[row]), round);
}

/// Writes factor * sums, rounded once to the tensor's dtype.
template <class S>
void write_rows(const StagedRows& sums, float factor, const TensorRows& to) {
  switch (to.dtype) {
    case DType::kFloat16:
      return write_typed<S, Float16>(sums, factor, to, [](float x) { return to_float16(x); });
    case DType::kBFloat16:
      return write_typed<S, BFloat16>(sums, factor, to, [](float x) { return to_bfloat16(x); });
    default:
      return write_typed<S, float>(sums, factor, to, [](float x) { return x; });
  }
}

}  // namespace sdpa::cpu
