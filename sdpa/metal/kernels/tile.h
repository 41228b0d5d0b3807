// SPDX-License-Identifier: MIT
#pragma once

// What all kernels are made of: 8x8 fragments, tiles that are walked, and what a query may see.
//
// A SIMD group multiplies 8x8 matrices. Each lane holds two neighbours of one row of each:
//
//   row    = 4 * bit 4 of the lane + bits 1 and 2        lanes of a row differ in bits 0 and 3
//   column = 4 * bit 3 of the lane + 2 * bit 0           lanes of a column differ in bits 1, 2 and
//   4
//
// Apple does not document this map, but all families to date have it. All operands are float32: the
// matrix rate of these GPUs is the same for half, and nothing is rounded between two products.
//
// Scores are in base 2: exp2 is an instruction, exp is not. A score of -infinity is a pair that is
// not seen; its probability and its gradient are zero whatever the tensors hold.

#include "sdpa/dropout.h"
#include "sdpa/online_softmax.h"
#include "sdpa/params.h"

namespace sdpa {

typedef float2 Fragment;

enum { kSide = 8, kFlashLanes = 32 };

/// Staged rows are that much longer than their columns, so that they start in different banks.
enum { kPadElements = 4 };

/// Head dimensions of up to 12 fragments (96) are kept in registers on the side that stays. Where
/// one result is all that is kept beside it, up to 32 fragments of both: the 64 registers that the
/// widest result alone takes.
enum { kMaxCached = 12, kMaxCachedWithResult = 32 };

/// What a kernel is specialized for. Sizes are in fragments of 8.
/// Results wider than the registers hold are split into chunks of columns, a threadgroup each.
template <typename T, int kQkFragments, int kVFragments, int kChunks, int kTileFragments,
          int kGroups, int kFeatures>
struct Spec {
  typedef T Element;

  enum {
    kOutQk = (kQkFragments + kChunks - 1) / kChunks,
    kOutV = (kVFragments + kChunks - 1) / kChunks,
    kTile = kTileFragments,
    kCachedQuery = kQkFragments <= kMaxCached || kQkFragments + kOutV <= int(kMaxCachedWithResult)
        ? kQkFragments
        : 1,
    kCachedQk = kQkFragments <= kMaxCached ? kQkFragments : 1,
    kCachedV = kVFragments <= kMaxCached ? kVFragments : 1,
    kStagedElements = (kFeatures & kStaged) != 0
        ? kTileFragments * kSide * ((kQkFragments + kVFragments) * kSide + 2 * kPadElements)
        : 1,
  };

  static METAL_FUNC constexpr int qk() { return kQkFragments; }

  static METAL_FUNC constexpr int v() { return kVFragments; }

  static METAL_FUNC constexpr int out_qk() { return kOutQk; }

  static METAL_FUNC constexpr int out_v() { return kOutV; }

  /// How wide the queries of the forward pass may be to stay in registers.
  static METAL_FUNC constexpr int query_limit() {
    return kOutV + kMaxCached > int(kMaxCachedWithResult) ? int(kMaxCached)
                                                          : int(kMaxCachedWithResult) - kOutV;
  }

  static METAL_FUNC constexpr int chunks() { return kChunks; }

  static METAL_FUNC constexpr int tile() { return kTileFragments; }

  static METAL_FUNC constexpr int groups() { return kGroups; }

  static METAL_FUNC constexpr bool has(int feature) { return (kFeatures & feature) != 0; }

  static METAL_FUNC constexpr int mask_kind() { return kFeatures & kMaskKindBits; }
};

constant constexpr float kLog2OfE = 1.44269504088896340736f;

METAL_FUNC long smaller(long a, long b) { return a < b ? a : b; }

METAL_FUNC long larger(long a, long b) { return a > b ? a : b; }

/// Where a lane's two elements are in a fragment.
struct Place {
  int row, column;
};

METAL_FUNC Place place_of(uint lane) {
  Place place;
  place.row = int((lane >> 4 & 1) * 4 + (lane >> 1 & 3));
  place.column = int((lane >> 3 & 1) * 4 + (lane & 1) * 2);
  return place;
}

METAL_FUNC void multiply_accumulate(thread Fragment& sum, Fragment left, Fragment right) {
  simdgroup_float8x8 a, b, c;
  reinterpret_cast<thread Fragment&>(a.thread_elements()) = left;
  reinterpret_cast<thread Fragment&>(b.thread_elements()) = right;
  reinterpret_cast<thread Fragment&>(c.thread_elements()) = sum;
  simdgroup_multiply_accumulate(c, a, b, c);
  sum = reinterpret_cast<thread Fragment&>(c.thread_elements());
}

METAL_FUNC float max_of_row(float value) {
  value = max(value, simd_shuffle_xor(value, ushort(1)));
  return max(value, simd_shuffle_xor(value, ushort(8)));
}

METAL_FUNC float sum_of_row(float value) {
  value += simd_shuffle_xor(value, ushort(1));
  return value + simd_shuffle_xor(value, ushort(8));
}

METAL_FUNC float sum_of_column(float value) {
  value += simd_shuffle_xor(value, ushort(2));
  value += simd_shuffle_xor(value, ushort(4));
  return value + simd_shuffle_xor(value, ushort(16));
}

// ---- Tiles: a few rows of a tensor, in device memory or copied to threadgroup memory ----

/// Rows beyond `rows` are not there: a load gives the last row instead, or is told not to.
template <typename Pointer>
struct Tile {
  Pointer data;
  long stride;  ///< elements between rows
  int rows;
  int columns;  ///< those beyond read as zero
};

template <typename Pointer>
METAL_FUNC Tile<Pointer> make_tile(Pointer data, long stride, long rows, long columns) {
  Tile<Pointer> tile;
  tile.data = data;
  tile.stride = stride;
  tile.rows = int(smaller(rows, kClassTile));
  tile.columns = int(columns);
  return tile;
}

template <typename S, typename Pointer>
METAL_FUNC float load(Pointer row, int column, int columns) {
  return !S::has(kRaggedDim) || column < columns ? float(row[column]) : 0.0f;
}

/// Two neighbours of a row.
template <typename S, typename Pointer>
METAL_FUNC Fragment load_pair(Pointer row, int column, int columns) {
  return Fragment(load<S>(row, column, columns), load<S>(row, column + 1, columns));
}

/// The fragment at (row, column) of a tile. Rows whose bit in `alive` is not set are zero.
template <typename S, typename Pointer>
METAL_FUNC Fragment load_rows(Tile<Pointer> tile, int row, int column, uint alive, Place at) {
  const int mine = row + at.row;
  if ((alive >> mine & 1) == 0) return Fragment(0.0f, 0.0f);
  return load_pair<S>(tile.data + mine * tile.stride, column + at.column, tile.columns);
}

/// The transpose of the fragment at (row, column) of a tile.
template <typename S, typename Pointer>
METAL_FUNC Fragment load_transposed(Tile<Pointer> tile, int row, int column, Place at) {
  const int first = min(row + at.column, tile.rows - 1);
  const int second = min(row + at.column + 1, tile.rows - 1);
  return Fragment(load<S>(tile.data + first * tile.stride, column + at.row, tile.columns),
                  load<S>(tile.data + second * tile.stride, column + at.row, tile.columns));
}

/// Copies rows to threadgroup memory; what is not there becomes zero. All threads take part.
template <typename S, typename Source, typename Target>
METAL_FUNC Tile<Target> stage(Tile<Source> source, Target target, int fragments,
                              uint thread_index) {
  const int width = fragments * kSide, pitch = width + kPadElements;
  const int count = S::tile() * kSide * width;
  for (int n = int(thread_index); n < count; n += S::groups() * kFlashLanes) {
    const int row = n / width, column = n % width;
    const bool there = row < source.rows && column < source.columns;
    target[row * pitch + column] =
        there ? source.data[row * source.stride + column] : typename S::Element(0.0f);
  }
  return make_tile(target, long(pitch), long(S::tile() * kSide), long(width));
}

/// Where the second of two staged tiles begins: behind one of `fragments` columns.
template <typename S>
METAL_FUNC int second_tile(int fragments) {
  return S::tile() * kSide * (fragments * kSide + kPadElements);
}

/// The fragments of one row a lane: in registers where they are at most `limit`, else loaded when
/// needed.
template <typename S, typename Pointer>
METAL_FUNC void cache_row(thread Fragment* cache, Pointer row, int fragments, int columns, Place at,
                          int limit = kMaxCached) {
  if (fragments > limit) return;
  SDPA_UNROLL
  for (int d = 0; d < fragments; ++d) cache[d] = load_pair<S>(row, d * kSide + at.column, columns);
}

/// sums[j] += left * (fragment j of the tile, transposed), for one fragment of the head dimension.
template <typename S, typename Pointer>
METAL_FUNC void add_products(thread Fragment* sums, Fragment left, Tile<Pointer> tile, int d,
                             Place at) {
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j)
    multiply_accumulate(sums[j], left, load_transposed<S>(tile, j * kSide, d * kSide, at));
}

/// sums = rows * tile transposed: the products of 8 rows with all rows of a tile.
template <typename S, typename Row, typename Pointer>
METAL_FUNC void multiply_transposed(thread Fragment* sums, const thread Fragment* cache, Row row,
                                    int columns, Tile<Pointer> tile, int fragments, Place at,
                                    int limit = kMaxCached) {
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) sums[j] = Fragment(0.0f, 0.0f);
  if (fragments <= limit) {
    SDPA_UNROLL
    for (int d = 0; d < fragments; ++d) add_products<S>(sums, cache[d], tile, d, at);
  } else {
    for (int d = 0; d < fragments; ++d)
      add_products<S>(sums, load_pair<S>(row, d * kSide + at.column, columns), tile, d, at);
  }
}

/// sums += weights * tile, for `fragments` columns of the tile from `first` on.
template <typename S, typename Pointer>
METAL_FUNC void add_weighted_rows(thread Fragment* sums, const thread Fragment* weights,
                                  Tile<Pointer> tile, int first, int fragments, uint alive,
                                  Place at) {
  SDPA_UNROLL
  for (int j = 0; j < S::tile(); ++j) {
    SDPA_UNROLL
    for (int d = 0; d < fragments; ++d)
      multiply_accumulate(sums[d], weights[j],
                          load_rows<S>(tile, j * kSide, (first + d) * kSide, alive, at));
  }
}

/// One row of results, as far as it exists.
template <typename Element>
METAL_FUNC void store_row(device Element* row, const thread Fragment* sums, float factor, int first,
                          int fragments, int columns, Place at) {
  SDPA_UNROLL
  for (int d = 0; d < fragments; ++d) {
    const int column = (first + d) * kSide + at.column;
    if (column < columns) row[column] = Element(sums[d].x * factor);
    if (column + 1 < columns) row[column + 1] = Element(sums[d].y * factor);
  }
}

METAL_FUNC void clear(thread Fragment* sums, int fragments) {
  SDPA_UNROLL
  for (int d = 0; d < fragments; ++d) sums[d] = Fragment(0.0f, 0.0f);
}

METAL_FUNC long offset(constant RowStrides& strides, long batch, long head, long row) {
  return batch * strides.batch + head * strides.head + row * strides.row;
}

METAL_FUNC long offset(constant MaskStrides& strides, long batch, long head, long row) {
  return batch * strides.batch + head * strides.head + row * strides.row;
}

}  // namespace sdpa
