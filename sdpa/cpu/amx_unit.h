// SPDX-License-Identifier: MIT
#pragma once

// A unit of the backward pass with AMX: up to 192 rows (queries of all heads of a group) in blocks
// of 32 lanes, packed; and the memory for it and for one block of keys.

#include "sdpa/cpu/amx_pack.h"
#include "sdpa/cpu/backward_job.h"
#include "sdpa/cpu/score.h"
#include "sdpa/cpu/scratch.h"

namespace sdpa::cpu {
namespace {

constexpr int kUnitBlocks = kUnitRows / kAmxBlock;
constexpr int kKeyTiles = kKeyBlock / kAmxBlock;

/// 32 lanes of a unit.
struct AmxRows {
  Lanes lanes;
  alignas(64) float lse[kAmxBlock];  ///< base 2; +infinity: sees nothing
  alignas(64) float delta[kAmxBlock];
  alignas(64) float grad_lse[kAmxBlock];
  BFloat16 *query, *grad_out;  ///< B tiles of columns [step][2][16][32]
  float* grad_query;           ///< dQ^T [d][32]
};

/// P^T or dS^T of a unit and a block of keys: A tiles.
struct AmxWeights {
  alignas(64) BFloat16 tile[kKeyTiles][kUnitBlocks][2][kTileSize];
};

/// Of 32 lanes and a block of keys.
template <class S>
struct AmxScores {
  alignas(64) float score[kKeyBlock][kAmxBlock];            ///< S^T, or P^T
  alignas(64) float grad[kKeyBlock][kAmxBlock];             ///< dP^T
  alignas(64) float slope[kKeyBlock][kAmxBlock];            ///< of the soft cap
  alignas(64) BFloat16 pairs[kKeyBlock / 2][kAmxBlock][2];  ///< dS^T by pairs of keys
  ScoreMask<S> mask;
};

/// A worker's scratch memory; without a base it is only counted.
template <class S>
struct AmxBackwardMemory {
  std::int64_t key_steps, value_steps;  ///< tiles along the head dimensions where these are summed
  std::int64_t key_tiles, value_tiles;  ///< where they are columns, of dK and dV
  std::int64_t query_tiles;             ///< where they are rows, of dQ^T: an even number

  AmxRows* rows;
  AmxScores<S>* scores;
  AmxWeights *p, *ds;
  BFloat16 *query_pairs, *grad_out_pairs;  ///< B tiles [lane / 32][d / 16][16][32]
  BFloat16 *keys, *values;                 ///< A tiles [key / 16][step][16][32]
  BFloat16* keys_t;                        ///< A tiles [key / 32][d / 16][16][32]
  std::int64_t floats;                     ///< of all

  AmxBackwardMemory(const Problem& s, std::int64_t unit_rows, float* base)
      : key_steps(ceil_div(s.qk_dim, kTileDepth)),
        value_steps(ceil_div(s.v_dim, kTileDepth)),
        key_tiles(ceil_div(s.qk_dim, kTileRows)),
        value_tiles(ceil_div(s.v_dim, kTileRows)),
        query_tiles(2 * key_steps) {
    Arena arena{.base = reinterpret_cast<char*>(base)};
    const std::int64_t blocks = ceil_div(unit_rows, kAmxBlock);
    rows = arena.take<AmxRows>(blocks);
    scores = arena.take<AmxScores<S>>(1);
    p = arena.take<AmxWeights>(1);
    ds = arena.take<AmxWeights>(1);
    query_pairs = arena.take<BFloat16>(blocks * key_tiles * kTileSize);
    grad_out_pairs = arena.take<BFloat16>(blocks * value_tiles * kTileSize);
    keys = arena.take<BFloat16>(kKeyBlock * key_steps * kTileDepth);
    values = arena.take<BFloat16>(kKeyBlock * value_steps * kTileDepth);
    keys_t = arena.take<BFloat16>(kKeyBlock * query_tiles * kTileRows);
    for (std::int64_t n = 0; n < blocks; ++n) {
      auto* query = arena.take<BFloat16>(2 * key_steps * kTileSize);
      auto* grad_out = arena.take<BFloat16>(2 * value_steps * kTileSize);
      auto* grad_query = arena.take<float>(grad_query_floats());
      if (base == nullptr) continue;
      rows[n].query = query;
      rows[n].grad_out = grad_out;
      rows[n].grad_query = grad_query;
    }
    floats = static_cast<std::int64_t>(arena.used / sizeof(float));
  }

  std::int64_t grad_query_floats() const { return query_tiles * kTileRows * kAmxBlock; }
};

template <class S>
class AmxUnit {
 public:
  AmxUnit(const BackwardTask& task, const AmxBackwardMemory<S>& memory)
      : task_(task), s_(*task.job->problem), t_(*task.job->tensors), m_(memory) {}

  /// Whether all of its rows and their terms are finite.
  bool begin(std::int64_t row) {
    first_row_ = row;
    const std::int64_t left = s_.q_len * s_.group() - row;
    rows_ = left < task_.job->unit_rows ? left : task_.job->unit_rows;
    bool finite = true;
    for (int n = 0; n < blocks(); ++n) finite &= begin_block(n);
    return finite;
  }

  std::int64_t first_row() const { return first_row_; }

  std::int64_t rows() const { return rows_; }

  int blocks() const { return static_cast<int>(ceil_div(rows_, kAmxBlock)); }

  void write_grad_query() const {
    const bool is_summed = task_.query_sums != nullptr;
    alignas(64) float factor[kAmxBlock];
    for (float& each : factor) each = is_summed ? 1 : static_cast<float>(s_.scale);
    for (int n = 0; n < blocks(); ++n) {
      if (is_summed)
        store_block(n, factor);
      else
        write_block(n, factor);
    }
  }

 private:
  using V = typename S::Vec;

  bool begin_block(int n) const {
    AmxRows& rows = m_.rows[n];
    const std::int64_t left = rows_ - n * kAmxBlock;
    rows.lanes = make_lanes(s_, task_.batch, task_.kv_head, first_row_ + n * kAmxBlock,
                            static_cast<int>(left < kAmxBlock ? left : kAmxBlock));
    const BFloat16 *query[kAmxBlock], *grad_out[kAmxBlock], *out[kAmxBlock];
    find_lanes(t_.query, rows.lanes, query);
    find_lanes(t_.grad_out, rows.lanes, grad_out);
    find_lanes(t_.out, rows.lanes, out);
    __builtin_memset(rows.grad_query, 0,
                     static_cast<std::size_t>(m_.grad_query_floats()) * sizeof(float));
    const bool finite =
        pack_both(query, s_.qk_dim, m_.key_tiles, rows.query, m_.query_pairs, n) &&
        pack_both(grad_out, s_.v_dim, m_.value_tiles, rows.grad_out, m_.grad_out_pairs, n);
    return stage_terms(rows, grad_out, out) && finite;
  }

  /// As columns, and as pairs of rows 16 apart: P^T and dS^T have their lanes in this order.
  static bool pack_both(const BFloat16* const (&rows)[kAmxBlock], std::int64_t columns,
                        std::int64_t tiles, BFloat16* by_columns, BFloat16* pairs, int n) {
    const BFloat16* paired[kAmxBlock];
    for (int i = 0; i < kTileRows; ++i) {
      paired[2 * i] = rows[i];
      paired[2 * i + 1] = rows[kTileRows + i];
    }
    pack_pairs(paired, columns, tiles * kTileRows, pairs + n * tiles * kTileSize);
    return pack_columns<S>(rows, columns, by_columns);
  }

  /// lse2 and delta = rowsum(dO O) - dLSE; +infinity and 0 for a row that sees nothing, and for
  /// padding. Whether all others are finite.
  bool stage_terms(AmxRows& rows, const BFloat16* const* grad_out,
                   const BFloat16* const* out) const {
    for (int lane = 0; lane < kAmxBlock; lane += S::kLanes) {
      V products[S::kLanes];
      for (int i = 0; i < S::kLanes; ++i)
        products[i] = output_products(grad_out[lane + i], out[lane + i]);
      S::store(rows.delta + lane, S::sum_rows(products));
    }
    const Lanes& lanes = rows.lanes;
    float poison = 0;
    for (int lane = 0; lane < kAmxBlock; ++lane) {
      float lse = kMinusInfinity, grad_lse = 0;
      if (lane < lanes.count) lse = *row_of<const float>(t_.lse, lanes, lane);
      const bool sees = lse != kMinusInfinity;
      if (sees && t_.grad_lse.is_present())
        grad_lse = *row_of<const float>(t_.grad_lse, lanes, lane);
      rows.lse[lane] = sees ? static_cast<float>(lse * kExactLog2E) : -kMinusInfinity;
      rows.grad_lse[lane] = grad_lse;
      rows.delta[lane] = sees ? rows.delta[lane] - grad_lse : 0;
      if (sees) poison += 0 * lse + 0 * rows.delta[lane];
    }
    return poison == 0;
  }

  V output_products(const BFloat16* grad_out, const BFloat16* out) const {
    V sum = S::zero();
    if (grad_out == nullptr) return sum;
    for (std::int64_t d = 0; d < s_.v_dim; d += S::kLanes) {
      const std::int64_t left = s_.v_dim - d;
      const int width = static_cast<int>(left < S::kLanes ? left : S::kLanes);
      sum = S::multiply_add(S::load_part(grad_out + d, width), S::load_part(out + d, width), sum);
    }
    return sum;
  }

  void store_block(int n, const float* factor) const {
    const std::int64_t stride = task_.job->layout.qk_stride;
    float* to[kAmxBlock];
    for (int lane = 0; lane < kAmxBlock; ++lane)
      to[lane] = task_.query_sums + (first_row_ + n * kAmxBlock + lane) * stride;
    const AmxRows& rows = m_.rows[n];
    transpose_out<S>(rows.grad_query, kAmxBlock, factor, rows.lanes.count, stride, to);
  }

  void write_block(int n, const float* factor) const {
    const AmxRows& rows = m_.rows[n];
    BFloat16* to[kAmxBlock];
    for (int lane = 0; lane < rows.lanes.count; ++lane)
      to[lane] = row_of<BFloat16>(t_.grad_query, rows.lanes, lane);
    transpose_out<S>(rows.grad_query, kAmxBlock, factor, rows.lanes.count, s_.qk_dim, to);
  }

  const BackwardTask& task_;
  const Problem& s_;
  const BackwardTensors& t_;
  const AmxBackwardMemory<S>& m_;
  std::int64_t first_row_ = 0, rows_ = 0;
};

}  // namespace
}  // namespace sdpa::cpu
