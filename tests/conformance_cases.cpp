// SPDX-License-Identifier: MIT
//
// The conformance suite: every shape is small, so that the double-precision oracle takes
// milliseconds, and every feature meets sizes on both sides of a tile's edge. The features that a
// sweep does not enumerate are spread over its cases by coprime cycles, so that all meet all.
#include <array>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "tests/cases.h"

namespace sdpa::cases {
namespace {

constexpr DType kFp32 = DType::kFloat32, kFp16 = DType::kFloat16, kBf16 = DType::kBFloat16,
                kFp64 = DType::kFloat64, kBool = DType::kBool;
constexpr std::array kDTypes{kFp32, kFp16, kBf16};
constexpr std::array kCausalities{Causal::kNone, Causal::kUpperLeft, Causal::kLowerRight};

/// One less than a tile, a tile, one more, for tiles of 4 to 128.
constexpr std::array<std::int64_t, 23> kEdges{1,  3,  4,  5,  6,  7,  8,  9,  15,  16,  17, 31,
                                              32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129};
constexpr std::array<std::int64_t, 12> kDims{1, 7, 8, 40, 64, 72, 80, 96, 128, 192, 256, 512};

/// Collects cases; one that says the same as an earlier one is dropped.
class Table {
 public:
  void add(Case spec) {
    spec.name = describe(spec);
    if (names_.insert(spec.name).second) list_.push_back(std::move(spec));
  }

  std::vector<Case> take() { return std::move(list_); }

 private:
  std::vector<Case> list_;
  std::unordered_set<std::string> names_;
};

/// The n-th of a repeating list.
template <typename List>
auto cycle(const List& list, std::size_t n) {
  return list[n % list.size()];
}

Case square_heads(DType dtype, std::int64_t q_len, std::int64_t kv_len, std::int64_t dim) {
  return {.dtype = dtype,
          .batch = 1,
          .q_heads = 2,
          .kv_heads = 2,
          .q_len = q_len,
          .kv_len = kv_len,
          .qk_dim = dim,
          .v_dim = dim};
}

/// Every pair of edge lengths.
void add_lengths(Table& table) {
  constexpr std::array<MaskSpec, 5> masks{
      {{}, {MaskShape::kFull}, {}, {MaskShape::kKeys, kBool, MaskPattern::kTail}, {}}};
  constexpr std::array<std::int64_t, 4> dims{16, 8, 24, 64};
  constexpr std::array<std::pair<std::int64_t, std::int64_t>, 7> heads{
      {{1, 1}, {2, 1}, {2, 2}, {3, 1}, {1, 1}, {4, 2}, {1, 1}}};
  std::size_t n = 0;
  for (std::int64_t q_len : kEdges)
    for (std::int64_t kv_len : kEdges) {
      ++n;
      Case spec = square_heads(cycle(kDTypes, n), q_len, kv_len, cycle(dims, n / 3));
      spec.causal = cycle(kCausalities, n / 2);
      spec.mask = cycle(masks, n);
      std::tie(spec.q_heads, spec.kv_heads) = cycle(heads, n);
      spec.grad_lse = n % 11 == 0;
      spec.dropout = n % 13 == 0 ? 0.25 : 0;
      table.add(spec);
    }
}

/// Every head dimension, and values wider and narrower than keys.
void add_dims(Table& table) {
  constexpr std::array<std::pair<std::int64_t, std::int64_t>, 13> unequal{{{64, 128},
                                                                           {128, 64},
                                                                           {192, 128},
                                                                           {40, 72},
                                                                           {8, 1},
                                                                           {1, 8},
                                                                           {512, 64},
                                                                           {64, 512},
                                                                           {96, 80},
                                                                           {7, 40},
                                                                           {256, 192},
                                                                           {17, 33},
                                                                           {36, 20}}};
  const auto add = [&](std::int64_t qk_dim, std::int64_t v_dim) {
    for (DType dtype : kDTypes)
      for (Causal causal : {Causal::kNone, Causal::kUpperLeft}) {
        Case spec = square_heads(dtype, 19, 37, qk_dim);
        spec.v_dim = v_dim;
        spec.kv_heads = 1;
        spec.causal = causal;
        spec.grad_lse = causal == Causal::kNone;
        table.add(spec);
      }
  };
  for (std::int64_t dim : kDims) add(dim, dim);
  for (const auto& [qk_dim, v_dim] : unequal) add(qk_dim, v_dim);
}

/// One bit of a counter.
bool bit(unsigned number, int position) { return (number >> position & 1u) != 0; }

/// Every combination of features, in float32 and, turn about, in a 16-bit dtype.
void add_features(Table& table) {
  constexpr std::array<MaskSpec, 3> masks{
      {{}, {MaskShape::kPerHead}, {MaskShape::kFull, kFp32, MaskPattern::kRandom}}};
  std::size_t n = 0;
  for (Causal causal : kCausalities)
    for (const MaskSpec& mask : masks)
      for (unsigned features = 0; features < 32; ++features)
        for (DType dtype : {kFp32, ++n % 2 ? kBf16 : kFp16}) {
          Case spec = square_heads(dtype, 37, 53, 16);
          spec.batch = 2;
          spec.kv_heads = 1;
          spec.causal = causal;
          spec.mask = mask;
          if (bit(features, 0)) spec.window = {20, 9};
          if (bit(features, 1)) spec.softcap = 2;
          spec.sinks = bit(features, 2);
          if (bit(features, 3)) spec.dropout = 0.3;
          spec.grad_lse = bit(features, 4);
          table.add(spec);
        }
}

/// Every shape, dtype and pattern of masks; also masks that leave a tile alone or hide all of it.
void add_masks(Table& table) {
  constexpr std::array patterns{
      MaskPattern::kRandom, MaskPattern::kEmptyRow, MaskPattern::kEmptyRows, MaskPattern::kTail,
      MaskPattern::kBlocks, MaskPattern::kAll,      MaskPattern::kSoft};
  std::size_t n = 0;
  for (MaskShape shape :
       {MaskShape::kFull, MaskShape::kPerHead, MaskShape::kMatrix, MaskShape::kKeys})
    for (DType mask_dtype : {kBool, kFp32, kFp16, kBf16, kFp64})
      for (MaskPattern pattern : patterns) {
        ++n;
        Case spec = square_heads(cycle(kDTypes, n), 67, 99, 16);
        spec.batch = 2;
        spec.q_heads = n % 2 ? 4 : 2;
        spec.mask = {shape, mask_dtype, pattern};
        spec.causal = n % 7 == 0 ? Causal::kUpperLeft : Causal::kNone;
        spec.sinks = n % 5 == 0;
        table.add(spec);
      }
  for (DType dtype : kDTypes) {
    Case spec = square_heads(dtype, 130, 200, 8);
    spec.mask = {MaskShape::kMatrix, kBool, MaskPattern::kBlocks};
    table.add(spec);
    spec.mask = {MaskShape::kPerHead, dtype, MaskPattern::kSoft};
    table.add(spec);
    spec = square_heads(dtype, 37, 70, 16);
    spec.batch = 2;
    spec.mask = {MaskShape::kRows, dtype, MaskPattern::kSoft};
    table.add(spec);
    spec.mask = {MaskShape::kRows, kBool, MaskPattern::kEmptyRows};
    table.add(spec);
  }
}

/// Every layout with every dtype, with shared and with own heads, with and without a mask.
void add_layouts(Table& table) {
  std::size_t n = 0;
  for (Layout layout :
       {Layout::kContiguous, Layout::kTransposed, Layout::kSliced, Layout::kExpandedBatch,
        Layout::kColumnStride, Layout::kHugeRows, Layout::kHugeHeads})
    for (DType dtype : kDTypes)
      for (std::int64_t kv_heads : {2, 1})
        for (std::int64_t q_len : {1, 21}) {
          ++n;
          Case spec = square_heads(dtype, q_len, 41, 40);
          spec.batch = 2;
          spec.kv_heads = kv_heads;
          spec.v_dim = n % 3 == 0 ? 24 : 40;
          spec.layout = layout;
          spec.causal = n % 4 == 0 ? Causal::kLowerRight : Causal::kNone;
          if (n % 2 == 0) spec.mask = {MaskShape::kPerHead, n % 8 ? kBool : kFp32};
          table.add(spec);
        }
}

/// Groups of every size, also ones that do not fit into a vector.
void add_groups(Table& table) {
  constexpr std::array<std::pair<std::int64_t, std::int64_t>, 8> heads{
      {{8, 1}, {8, 2}, {6, 3}, {5, 1}, {3, 3}, {12, 4}, {7, 7}, {16, 1}}};
  std::size_t n = 0;
  for (const auto& [q_heads, kv_heads] : heads)
    for (std::int64_t q_len : {1, 5, 16, 33})
      for (bool mask : {false, true}) {
        ++n;
        Case spec = square_heads(cycle(kDTypes, n / 2), q_len, 35, 16);
        spec.batch = 2;
        spec.q_heads = q_heads;
        spec.kv_heads = kv_heads;
        spec.causal = cycle(kCausalities, n);
        if (mask) spec.mask = {MaskShape::kPerHead, n % 3 ? kBool : kBf16};
        spec.dropout = n % 5 == 0 ? 0.5 : 0;
        table.add(spec);
      }
}

/// Few queries against long caches.
void add_decode(Table& table) {
  std::size_t n = 0;
  for (std::int64_t q_len : {1, 2, 4, 8})
    for (std::int64_t kv_len : {1, 127, 128, 129, 511, 1000, 2049})
      for (std::int64_t q_heads : {1, 4, 8}) {
        ++n;
        Case spec = square_heads(cycle(kDTypes, n), q_len, kv_len, n % 2 ? 64 : 40);
        spec.q_heads = q_heads;
        spec.kv_heads = q_heads == 8 ? 2 : 1;
        spec.causal = n % 3 ? Causal::kLowerRight : Causal::kNone;
        if (n % 4 == 0) spec.window.left = 100;
        if (n % 5 == 0) spec.mask = {MaskShape::kKeys, kBool, MaskPattern::kTail};
        if (n % 7 == 0) spec.mask = {MaskShape::kFull, spec.dtype, MaskPattern::kRandom};
        spec.sinks = n % 6 == 0;
        spec.softcap = n % 8 == 0 ? 5 : 0;
        table.add(spec);
      }
}

/// Windows that are closed, open on a side, wider than everything, and that hide whole rows.
void add_windows(Table& table) {
  constexpr std::array<Window, 12> windows{{{0, 0},
                                            {-1, 0},
                                            {3, -1},
                                            {0, 5},
                                            {500, 500},
                                            {5, 2},
                                            {31, 32},
                                            {64, 0},
                                            {0, -1},
                                            {6, -1},
                                            {-1, 6},
                                            {9, 3}}};
  std::size_t n = 0;
  for (const Window& window : windows)
    for (Causal causal : kCausalities)
      for (const auto& [q_len, kv_len] :
           {std::pair<std::int64_t, std::int64_t>{70, 70}, {33, 90}, {140, 40}}) {
        ++n;
        Case spec = square_heads(cycle(kDTypes, n), q_len, kv_len, 8);
        spec.causal = causal;
        spec.window = window;
        if (n % 5 == 0) spec.mask = {MaskShape::kFull};
        table.add(spec);
      }
}

/// Scales that flatten the softmax, invert it, or leave one key.
void add_scales(Table& table) {
  for (double scale : {0.0, 1.0, -0.5, 3.0})
    for (DType dtype : kDTypes)
      for (double softcap : {0.0, 1.5}) {
        Case spec = square_heads(dtype, 40, 70, 16);
        spec.scale = scale;
        spec.softcap = softcap;
        table.add(spec);
      }
}

/// All or nothing is dropped; a float64 problem; extents of zero.
void add_extremes(Table& table) {
  for (DType dtype : kDTypes)
    for (double dropout : {1.0, 0.999, 1e-9}) {
      Case spec = square_heads(dtype, 20, 30, 8);
      spec.dropout = dropout;
      table.add(spec);
    }
  for (Causal causal : kCausalities)
    for (bool all : {false, true}) {
      Case spec = square_heads(kFp64, 21, 33, 24);
      spec.kv_heads = 1;
      spec.causal = causal;
      if (all) {
        spec.mask = {MaskShape::kPerHead, kFp64};
        spec.window = {9, 9};
        spec.softcap = 3;
        spec.dropout = 0.2;
        spec.sinks = spec.grad_lse = true;
      }
      table.add(spec);
    }
  for (std::int64_t Case::* extent :
       {&Case::batch, &Case::q_len, &Case::kv_len, &Case::qk_dim, &Case::v_dim})
    for (bool sinks : {false, true}) {
      Case spec = square_heads(kFp32, 5, 6, 7);
      spec.*extent = 0;
      spec.sinks = sinks;
      table.add(spec);
    }
}

}  // namespace

std::vector<Case> conformance_cases() {
  Table table;
  add_lengths(table);
  add_dims(table);
  add_features(table);
  add_masks(table);
  add_layouts(table);
  add_groups(table);
  add_decode(table);
  add_windows(table);
  add_scales(table);
  add_extremes(table);
  return table.take();
}

}  // namespace sdpa::cases
