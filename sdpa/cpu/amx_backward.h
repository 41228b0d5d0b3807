// SPDX-License-Identifier: MIT
#pragma once

// The backward pass of one part of a (batch, key head) for bfloat16 with AMX products (amx_tile.h).
//
//   for each unit (up to 192 rows, amx_unit.h): pack Q and dO;  dQ^T = 0
//     for each 128 keys that the unit sees: pack K and V by rows, K transposed
//       for each 32 lanes (rows of the unit) that see some of them:
//         for 32 keys at a time:  S^T = K Q^T;  dP^T = V dO^T
//                                 P^T = exp2(mask(softcap(S^T)) - lse2)
//                                 dS^T = P^T (keep dP^T - delta);  P^T = keep P^T
//         dQ^T += K^T dS^T
//       for each 32 keys:  dV += P^T dO;  dK += dS^T Q
//     write dQ
//
// Scores are floats and exist for 32 keys and 32 lanes; P^T and dS^T are rounded and exist for the
// whole unit, so that dV and dK sum over six tiles of lanes, and dQ over four of keys, between
// loading a tile of sums and storing it. dS^T is made by rows (A, for dK) and by pairs of keys (B,
// for dQ) from registers. Lanes 16 apart are neighbours in a row of P^T: rounding puts them there
// without a shuffle, and rows of dO and Q are paired the same way.
//
// A zero must not meet a NaN in these products, so that all operands must be finite; the caller
// takes another kernel where they are not, and where rows have gaps.

#include "sdpa/cpu/amx_unit.h"
#include "sdpa/cpu/backward_sums.h"
#include "sdpa/cpu/backward_terms.h"

namespace sdpa::cpu {
namespace {

/// Over an instruction set S, with products by Tiles.
template <class S, class Tiles>
class AmxBackward {
 public:
  explicit AmxBackward(const BackwardTask& task)
      : task_(task),
        s_(*task.job->problem),
        t_(*task.job->tensors),
        m_(s_, task.job->unit_rows, task.scratch + task.job->layout.own),
        scores_(*m_.scores) {}

  /// Floats of scratch memory that it needs.
  static std::int64_t floats(const Problem& problem, std::int64_t unit_rows) {
    return AmxBackwardMemory<S>(problem, unit_rows, nullptr).floats;
  }

  /// Leaves dK and dV of the part's keys in `key_sums`, and writes dQ. False where rows have gaps
  /// or are not finite: then all of it is still to be done.
  bool run() {
    if (!have_whole_rows()) return false;
    const typename Tiles::Registers registers;
    sums_.begin();
    for (std::int64_t unit = task_.part->first_unit; unit < task_.part->last_unit; ++unit)
      if (!run_unit(unit)) return false;
    sums_.zero_until(task_.part->last_block);
    return true;
  }

 private:
  using V = typename S::Vec;
  static constexpr int kColumns = S::kColumns;

  bool have_whole_rows() const {
    return has_whole_rows(t_.query) && has_whole_rows(t_.key) && has_whole_rows(t_.value) &&
           has_whole_rows(t_.out) && has_whole_rows(t_.grad_out) && has_whole_rows(t_.grad_query);
  }

  bool run_unit(std::int64_t unit) {
    const BackwardPart& part = *task_.part;
    if (!unit_.begin(unit * task_.job->unit_rows)) return false;
    const BlockRange seen = visible_blocks(s_, unit_.first_row(), unit_.rows());
    const std::int64_t last = seen.last < part.last_block ? seen.last : part.last_block;
    std::int64_t block = seen.first > part.first_block ? seen.first : part.first_block;
    for (; block < last; ++block)
      if (!run_block(block)) return false;
    if (t_.grad_query.is_present()) unit_.write_grad_query();
    if (t_.grad_sinks.is_present() && owns_rows(part, seen)) write_sinks();
    return true;
  }

  void write_sinks() const {
    for (int n = 0; n < unit_.blocks(); ++n)
      write_sink_terms<S>(task_, m_.rows[n].lanes, unit_.first_row() + n * kAmxBlock,
                          m_.rows[n].lse, m_.rows[n].delta);
  }

  // A block of keys

  bool run_block(std::int64_t block) {
    sums_.zero_until(block + 1);
    first_key_ = block * kKeyBlock;
    if (!pack_keys()) return false;
    for (LaneBlocks& seen : seen_) seen = {};
    for (int n = 0; n < unit_.blocks(); ++n) run_lanes(n);
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      const std::int64_t key = first_key_ + tile * kAmxBlock;
      if (t_.grad_value.is_present())
        add_to_keys(tile, *m_.p, m_.grad_out_pairs, m_.value_tiles, sums_.grad_value(key));
      if (t_.grad_key.is_present())
        add_to_keys(tile, *m_.ds, m_.query_pairs, m_.key_tiles, sums_.grad_key(key));
    }
    return true;
  }

  /// Whether all are finite.
  bool pack_keys() const {
    const BFloat16* rows[kKeyBlock];
    bool finite = true;
    find_rows(t_.value, task_.batch, task_.kv_head, first_key_, kKeyBlock, rows);
    for (int key = 0; key < kKeyBlock; key += kTileRows)
      finite &= pack_rows(rows + key, s_.v_dim, m_.values + key * m_.value_steps * kTileDepth);
    find_rows(t_.key, task_.batch, task_.kv_head, first_key_, kKeyBlock, rows);
    for (int key = 0; key < kKeyBlock; key += kTileRows)
      finite &= pack_rows(rows + key, s_.qk_dim, m_.keys + key * m_.key_steps * kTileDepth);
    for (int key = 0; key < kKeyBlock; key += kTileDepth)
      pack_transposed<S>(rows + key, s_.qk_dim, m_.query_tiles * kTileRows,
                         m_.keys_t + key * m_.query_tiles * kTileRows);
    return finite;
  }

  /// dK or dV of 32 keys: weights times rows of Q or dO, over the lanes that see some of the keys.
  void add_to_keys(int tile, const AmxWeights& weights, const BFloat16* pairs, std::int64_t tiles,
                   float* sums) const {
    const LaneBlocks& seen = seen_[tile];
    const int steps = seen.last - seen.first;
    if (steps == 0) return;
    const TilePair a = packed(weights.tile[tile][seen.first][0], kTileSize, 2 * kTileSize);
    pairs += seen.first * tiles * kTileSize;
    for (std::int64_t column = 0; column < tiles; column += 2) {
      const TilePair b = packed(pairs + column * kTileSize, kTileSize, tiles * kTileSize);
      float* to = sums + column * kTileRows;
      if (column + 1 < tiles)
        Tiles::template multiply_block<Sum::kContinue>(to, tiles * kTileRows, a, b, steps);
      else
        Tiles::template multiply_block<Sum::kContinue, 1>(to, tiles * kTileRows, a, b, steps);
    }
  }

  // 32 lanes against a block of keys

  /// What each vector of lanes needs, in registers.
  struct LaneTerms {
    V less_lse[kColumns], delta[kColumns];

    SDPA_INLINE explicit LaneTerms(const AmxRows& rows) {
      unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
        less_lse[j] = S::sub(S::zero(), S::load(rows.lse + j * S::kLanes));
        delta[j] = S::load(rows.delta + j * S::kLanes);
      });
    }
  };

  void run_lanes(int n) {
    AmxRows& rows = m_.rows[n];
    ScoreMask<S>& mask = scores_.mask;
    const std::int64_t left = s_.kv_len - first_key_;
    const int keys = static_cast<int>(left < kKeyBlock ? left : kKeyBlock);
    const Coverage coverage = survey<S>(t_.mask, rows.lanes, first_key_, 0, keys, mask);
    if (coverage == Coverage::kNone) return;
    if (s_.dropout.is_active())
      choose_kept<S>(s_.dropout, s_.q_heads, rows.lanes, first_key_, mask.begin, mask.end, mask);
    const int begin = mask.begin / kAmxBlock * kAmxBlock;
    const int end = static_cast<int>(round_up(mask.end, kAmxBlock));
    const bool is_plain =
        coverage == Coverage::kFull && softcap_.cap == 0 && !s_.dropout.is_active();
    if (has_exact_delta(rows.lanes))
      run_all_keys(n, begin, end, coverage);
    else
      for (int key = begin; key < end; key += kAmxBlock) {
        const bool is_whole = key >= mask.begin && key + kAmxBlock <= mask.end;
        multiply_scores(rows, key, 0);
        if (is_plain && is_whole) {
          weigh<true>(n, key, 0);
        } else {
          probabilities(rows, key, 0, coverage);
          weigh<false>(n, key, 0);
        }
      }
    if (t_.grad_query.is_present()) add_to_queries(rows, begin, end);
  }

  /// Whether these are all the keys that the lanes see. delta then comes from P and dP instead of
  /// the output, which was rounded to 16 bits: rows with few keys have the largest P and would show
  /// it.
  bool has_exact_delta(const Lanes& lanes) const {
    return lanes.min_first >= first_key_ && lanes.max_last <= first_key_ + kKeyBlock;
  }

  void run_all_keys(int n, int begin, int end, Coverage coverage) {
    AmxRows& rows = m_.rows[n];
    for (int key = begin; key < end; key += kAmxBlock) {
      multiply_scores(rows, key, key);
      probabilities(rows, key, key, coverage);
    }
    normalize(rows, begin, end);
    sum_delta(rows, begin, end);
    for (int key = begin; key < end; key += kAmxBlock) weigh<false>(n, key, key);
  }

  /// S^T and dP^T of 32 keys, to rows `at` of their memory.
  void multiply_scores(const AmxRows& rows, int key, int at) const {
    multiply_lanes<Tiles>(scores_.score[at], m_.keys + key * m_.key_steps * kTileDepth, rows.query,
                          m_.key_steps);
    multiply_lanes<Tiles>(scores_.grad[at], m_.values + key * m_.value_steps * kTileDepth,
                          rows.grad_out, m_.value_steps);
  }

  /// P^T of 32 keys in place of S^T; 0 beyond the surveyed range.
  void probabilities(const AmxRows& rows, int key, int at, Coverage coverage) const {
    const ScoreMask<S>& mask = scores_.mask;
    for (int row = 0; row < kAmxBlock; ++row) {
      Tile<S, 1, kColumns> tile;
      float* score = scores_.score[at + row];
      if (key + row < mask.begin || key + row >= mask.end) {
        clear(tile);
        store(tile, score, kAmxBlock);
        continue;
      }
      load(tile, score, kAmxBlock);
      scale(tile, scale_);
      if (softcap_.cap != 0) {
        apply_softcap(softcap_, tile);
        store_slope(tile, scores_.slope[at + row]);
      }
      if (coverage == Coverage::kPartial) apply_mask(mask, key + row, tile);
      for_each(tile, [&](auto, auto j, V& x) SDPA_INLINE_LAMBDA {
        x = exp2<S, Rounding::kTo16Bits>(S::sub(x, S::load(rows.lse + j * S::kLanes)));
      });
      store(tile, score, kAmxBlock);
    }
  }

  void store_slope(Tile<S, 1, kColumns>& tile, float* to) const {
    for_each(tile, [&](auto, auto j, V& x) SDPA_INLINE_LAMBDA {
      S::store(to + j * S::kLanes, softcap_slope<S>(softcap_, x));
    });
  }

  /// Makes the probabilities of a lane sum up to 1, which those from a log-sum-exp do but nearly:
  /// by 7e-5 after a forward pass with the exponential for 16 bits.
  void normalize(const AmxRows& rows, int begin, int end) const {
    unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
      V sum = sink_probabilities<S>(s_, t_.sinks, rows.lanes, j * S::kLanes, rows.lse);
      for (int key = begin; key < end; ++key)
        sum = S::add(sum, S::load(scores_.score[key] + j * S::kLanes));
      const V factor = S::keep(is_positive<S>(sum), S::div(S::broadcast(1.0f), sum));
      for (int key = begin; key < end; ++key) {
        float* p = scores_.score[key] + j * S::kLanes;
        S::store(p, S::mul(S::load(p), factor));
      }
    });
  }

  void sum_delta(AmxRows& rows, int begin, int end) const {
    unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
      V sum = S::sub(S::zero(), S::load(rows.grad_lse + j * S::kLanes));
      for (int key = begin; key < end; ++key) {
        const V p = S::load(scores_.score[key] + j * S::kLanes);
        const V product = S::mul(p, grad_of(key, key, j));
        sum = S::add(sum, S::keep(is_positive<S>(p), product));
      }
      S::store(rows.delta + j * S::kLanes, sum);
    });
  }

  /// dP of what was kept, rescaled.
  SDPA_INLINE V grad_of(int key, int at, int j) const {
    const V grad = S::load(scores_.grad[at] + j * S::kLanes);
    if (!s_.dropout.is_active()) return grad;
    return S::keep(sees<S>(scores_.mask.kept, key, j), S::mul(grad, S::broadcast(rescale_)));
  }

  /// P^T and dS^T of 32 keys, rounded. Plain scores are still products; otherwise they are P^T.
  template <bool kIsPlain>
  void weigh(int n, int key, int at) {
    const AmxRows& rows = m_.rows[n];
    BFloat16* p_row = start_weights(*m_.p, n, key);
    BFloat16* ds_row = start_weights(*m_.ds, n, key);
    seen_[key / kAmxBlock].add(n);
    const LaneTerms terms(rows);
    for (int row = 0; row < kAmxBlock; row += 2) {
      V p[2][kColumns], ds[2][kColumns];
      unroll<2>([&](auto i) SDPA_INLINE_LAMBDA {
        unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
          weigh_key<kIsPlain>(terms, key + row + i, at + row + i, j, p[i][j], ds[i][j]);
        });
      });
      unroll<2>([&](auto i) SDPA_INLINE_LAMBDA {
        _mm512_store_si512(p_row + (row + i) * kTileDepth, round_pairs(p[i][0], p[i][1]));
        _mm512_store_si512(ds_row + (row + i) * kTileDepth, round_pairs(ds[i][0], ds[i][1]));
      });
      unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
        _mm512_store_si512(scores_.pairs[(key + row) / 2][j * S::kLanes],
                           round_pairs(ds[0][j], ds[1][j]));
      });
    }
  }

  /// P and dS of one key and the lanes of column j, whose scores are in row `at`. Where P is 0 by
  /// a mask, dP may be NaN and a slope be missing.
  template <bool kIsPlain>
  SDPA_INLINE void weigh_key(const LaneTerms& terms, int key, int at, int j, V& p, V& ds) const {
    p = S::load(scores_.score[at] + j * S::kLanes);
    if constexpr (kIsPlain) {
      p = exp2<S, Rounding::kTo16Bits>(S::multiply_add(p, S::broadcast(scale_), terms.less_lse[j]));
      ds = S::mul(p, S::sub(S::load(scores_.grad[at] + j * S::kLanes), terms.delta[j]));
      return;
    }
    ds = S::mul(p, S::sub(grad_of(key, at, j), terms.delta[j]));
    if (softcap_.cap != 0) ds = S::mul(ds, S::load(scores_.slope[at] + j * S::kLanes));
    ds = S::keep(is_positive<S>(p), ds);
    if (s_.dropout.is_active()) p = S::keep(sees<S>(scores_.mask.kept, key, j), p);
  }

  /// Where the weights of 32 lanes and 32 keys go; zeros for lanes before them that see none of
  /// these keys, between others that do.
  BFloat16* start_weights(AmxWeights& weights, int n, int key) const {
    const int tile = key / kAmxBlock;
    const LaneBlocks& seen = seen_[tile];
    for (int gap = seen.last; seen.last > 0 && gap < n; ++gap)
      __builtin_memset(weights.tile[tile][gap], 0, sizeof weights.tile[tile][gap]);
    return weights.tile[tile][n][0];
  }

  /// dQ^T over keys [begin, end) of the block.
  void add_to_queries(const AmxRows& rows, int begin, int end) const {
    const BFloat16* keys = m_.keys_t + begin * m_.query_tiles * kTileRows;
    add_weighted<Tiles>(rows.grad_query, keys, m_.query_tiles, scores_.pairs[begin / 2][0],
                        (end - begin) / kTileDepth);
  }

  /// Blocks of lanes [first, last) that see some of 32 keys; what lies between them does, or has
  /// zeros for weights.
  struct LaneBlocks {
    int first = 0, last = 0;

    void add(int n) {
      if (last == 0) first = n;
      last = n + 1;
    }
  };

  const BackwardTask task_;
  const Problem& s_;
  const BackwardTensors& t_;
  const AmxBackwardMemory<S> m_;
  AmxScores<S>& scores_;
  const Softcap softcap_ = make_softcap(s_);
  const float scale_ = score_factor(s_);
  const float rescale_ = static_cast<float>(s_.dropout.rescale());
  AmxUnit<S> unit_{task_, m_};
  KeySums<S> sums_{task_};
  LaneBlocks seen_[kKeyTiles];
  std::int64_t first_key_ = 0;
};

}  // namespace
}  // namespace sdpa::cpu
