// SPDX-License-Identifier: MIT
#pragma once

// The two products of a decode task's block of keys, on vectors (decode_tile.h).

#include "sdpa/cpu/decode_tile.h"
#include "sdpa/cpu/lanes.h"
#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

/// Room for whole tiles beyond the last key of a block.
constexpr std::int64_t kScoreStride = kKeyBlock + 16;

/// Whether products of bfloat16 are of tiles: classes of their own do them (amx_decode.h).
template <class S>
constexpr bool kHasTiles = requires { typename S::Tiles; };

/// What a thread has to set up for products of tiles; nothing for those on vectors.
template <class S>
struct ProductRegisters {};

template <class S>
  requires kHasTiles<S>
struct ProductRegisters<S> : S::Registers {};

/// Reads keys and values [begin, end) of the task's block. `Element` is what they are read as.
template <class S, typename Element, class Task>
class VectorProducts {
 public:
  explicit VectorProducts(Task& task) : t_(task) {}

  /// scores[row][key] = q k. Queries are read once for all keys of a tile; later pieces of rows
  /// find the keys in the cache.
  void score() {
    for_row_pieces<4>(0, t_.rows(), [&](auto count, std::int64_t row) SDPA_INLINE_LAMBDA {
      dot_rows<S, count>(t_.keys, t_.begin, t_.end, t_.queries() + row * t_.query_stride(),
                         t_.query_stride(), t_.work.scores + row * kScoreStride, kScoreStride);
      t_.keys.ahead = 0;
    });
  }

  /// out = rescale out + P V.
  void accumulate() {
    constexpr int kTile = kDecodeTile<S>;
    for_row_pieces<4>(0, t_.rows(), [&](auto count, std::int64_t row) SDPA_INLINE_LAMBDA {
      constexpr int kVectors = kTile / count < 8 ? kTile / count : 8;
      const std::int64_t columns = t_.problem.v_dim, whole = columns / S::kLanes;
      for_row_pieces<kVectors>(0, whole, [&](auto vectors, std::int64_t j) SDPA_INLINE_LAMBDA {
        accumulate_tile<count, vectors>(static_cast<int>(row), j * S::kLanes, S::kLanes);
      });
      if (const auto rest = static_cast<int>(columns - whole * S::kLanes); rest > 0)
        accumulate_tile<count, 1>(static_cast<int>(row), whole * S::kLanes, rest);
      t_.values.ahead = 0;
    });
  }

 private:
  template <int Rows, int Vectors>
  void accumulate_tile(int row, std::int64_t d, int width) {
    const std::int64_t stride = t_.out_stride();
    float* out = t_.partial.out + row * stride + d;
    OutTile<S, Rows, Vectors> tile;
    clear(tile);
    add_block(tile, row, d, width);
    if (t_.hides_some() && !is_finite(tile))
      return t_.add_seen(row, Rows, d, Vectors > 1 ? Vectors * S::kLanes : width);
    unroll<Rows>([&](auto r) SDPA_INLINE_LAMBDA {
      const auto factor = S::broadcast(t_.work.rescale[row + r]);
      unroll<Vectors>([&](auto j) SDPA_INLINE_LAMBDA {
        const auto before = S::load(out + r * stride + j * S::kLanes);
        tile.v[r][j] = S::multiply_add(before, factor, tile.v[r][j]);
      });
    });
    store(tile, out, stride);
  }

  template <int Rows, int Vectors>
  SDPA_INLINE void add_block(OutTile<S, Rows, Vectors>& tile, int row, std::int64_t d, int width) {
    if constexpr (Task::kPairs && Vectors > 1) {
      add_value_pairs(tile, t_.values, t_.begin, t_.end, d, t_.work.rounded + row * kScoreStride,
                      kScoreStride);
      unroll<Rows>([&](auto r) SDPA_INLINE_LAMBDA {
        unroll<Vectors / 2>([&](auto j) SDPA_INLINE_LAMBDA {
          S::order_as_columns(tile.v[r][2 * j], tile.v[r][2 * j + 1]);
        });
      });
    } else {
      add_values(tile, t_.values, t_.begin, t_.end, d, width, t_.work.scores + row * kScoreStride,
                 kScoreStride);
    }
  }

 protected:
  Task& t_;
};

/// Those that an instruction set has for such elements.
template <class S, typename Element, class Task>
class DecodeProducts : public VectorProducts<S, Element, Task> {
 public:
  using VectorProducts<S, Element, Task>::VectorProducts;
};

}  // namespace sdpa::cpu
