// SPDX-License-Identifier: MIT
#pragma once

// The forward pass for bfloat16 with AMX products (amx_tile.h).
//
//   pack every key/value head once: K by rows, V transposed, zeros where a tile is ragged;
//   where a head is one task, the task packs each block of keys as it comes to it, which saves the
//   way through memory (32 rows against 4096 keys of D64, one Granite Rapids core: 1.06 to 0.80 ms)
//   for each task: up to 4 blocks of 32 lanes (queries of the heads that share the key head)
//     pack Q as columns;  O^T = 0
//     for each block of 128 keys, for each block of lanes that sees some of them:
//       for 64 keys at a time:  S^T = K Q^T;  soft cap, mask
//                               m = max(m, S^T);  where it grew, O and l are rescaled
//                               P^T = exp2(S^T - m), rounded to pairs
//       O^T += V^T P^T
//     O = O^T / l, the sum of P as it was rounded
//
// Four blocks of lanes share each block of K and V while it is in the first two levels of cache:
// 2 KiB of operands for 4 products of 16 cycles is more than the second level alone delivers.
//
// m is exact, since of large probabilities those next to 1 are rounded least: relative to a maximum
// that may be stale, outputs of 64 to 8192 keys are 1.01 to 1.05 times as far from double precision
// as torch's, and so 0.94 to 1.00. By 64 keys it grows half as often as by 32: the best calls of
// three interleaved runs took 0 to 8 % longer than with a stale one, by 32 keys 6 to 10, and by
// 128, whose scores push the operands out of the first-level cache, 6 to 20 (D64 and D128 causal,
// L2048, one Granite Rapids core).
//
// A product of a zero probability and a NaN value would be NaN, so that K and V must be finite
// here; the caller takes another kernel where they are not, and where rows have gaps.

#include <atomic>

#include "sdpa/cpu/amx_pack.h"
#include "sdpa/cpu/score.h"
#include "sdpa/cpu/scratch.h"
#include "sdpa/threads.h"

namespace sdpa::cpu {
namespace {

constexpr int kTaskBlocks = 4;

/// Keys whose scores are there at a time.
constexpr int kScoreStep = 2 * kAmxBlock;

/// kKeyBlock keys and values, packed.
struct PackedBlock {
  BFloat16* keys;    ///< [key / 16][step][16][32]
  BFloat16* values;  ///< [key / 32][d / 16][16][32]
};

/// How blocks are packed, one after the other.
struct PackedLayout {
  std::int64_t key_steps;    ///< tiles along the head dimension of K
  std::int64_t value_tiles;  ///< tiles along the head dimension of V
  std::int64_t blocks;       ///< key blocks a head

  std::int64_t key_block_size() const { return kKeyBlock / kTileRows * key_steps * kTileSize; }

  std::int64_t block_size() const {
    return key_block_size() + kKeyBlock / kTileDepth * value_tiles * kTileSize;
  }

  PackedBlock block(BFloat16* memory, std::int64_t index) const {
    BFloat16* keys = memory + index * block_size();
    return {.keys = keys, .values = keys + key_block_size()};
  }
};

template <class S>
bool pack_block(const ForwardTensors& t, const PackedLayout& layout, std::int64_t batch,
                std::int64_t head, std::int64_t first, PackedBlock to) {
  const BFloat16* rows[kKeyBlock];
  bool finite = true;
  find_rows(t.key, batch, head, first, kKeyBlock, rows);
  for (int key = 0; key < kKeyBlock; key += kTileRows, to.keys += layout.key_steps * kTileSize)
    finite &= pack_rows(rows + key, t.key.shape[3], to.keys);
  find_rows(t.value, batch, head, first, kKeyBlock, rows);
  const std::int64_t tiles = layout.value_tiles;
  for (int key = 0; key < kKeyBlock; key += kTileDepth, to.values += tiles * kTileSize)
    finite &= pack_transposed<S>(rows + key, t.value.shape[3], tiles * kTileRows, to.values);
  return finite;
}

/// What a worker keeps of one block of lanes while it walks over the keys.
template <class S>
struct AmxBlock {
  Lanes lanes;
  typename S::Vec row_max[S::kColumns];  ///< base 2; -infinity: nothing seen yet
  typename S::Vec row_sum[S::kColumns];
  typename S::Vec rounded_sum[S::kColumns];  ///< of probabilities as the output takes them
  BFloat16* query;                           ///< B tiles [step][2][16][32]
  float* out;                                ///< O^T [padded v_dim][32]
};

/// A worker's memory: what is alive for one block of keys, then the blocks of lanes.
template <class S>
struct AmxScratch {
  alignas(64) float scores[kScoreStep][kAmxBlock];
  alignas(64) BFloat16 probabilities[kKeyBlock / 2][kAmxBlock][2];
  ScoreMask<S> mask;
  AmxBlock<S> block[kTaskBlocks];
};

inline bool has_whole_rows(const ForwardTensors& t) {
  return has_whole_rows(t.query) && has_whole_rows(t.key) && has_whole_rows(t.value) &&
         has_whole_rows(t.out);
}

/// The pass over an instruction set S, with products by Tiles.
template <class S, class Tiles>
class AmxForward {
 public:
  AmxForward(const Problem& problem, const ForwardTensors& tensors)
      : s_(problem),
        t_(tensors),
        layout_{.key_steps = ceil_div(s_.qk_dim, kTileDepth),
                .value_tiles = round_up(s_.v_dim, kAmxBlock) / kTileRows,
                .blocks = ceil_div(s_.kv_len, kKeyBlock)},
        tasks_per_head_(ceil_div(problem.q_len * problem.group(), kTaskBlocks * kAmxBlock)),
        packs_blocks_(tasks_per_head_ == 1 && heads() >= thread_count()),
        memory_(packs_blocks_ ? 0 : heads() * layout_.blocks * layout_.block_size() / 2),
        softcap_(make_softcap(problem)),
        scale_(score_factor(problem)) {}

  /// False, and the output is not to be used, where rows have gaps, or a key or a value is not
  /// finite.
  bool run() {
    if (!has_whole_rows(t_)) return false;
    if (!packs_blocks_ && !pack_all()) return false;
    std::atomic<bool> finite = true;
    parallel_for(heads() * tasks_per_head_, [&](std::int64_t task, int) {
      const typename Tiles::Registers registers;
      // The last rows come first: under causality they are the longest tasks.
      const std::int64_t chunk = tasks_per_head_ - 1 - task % tasks_per_head_;
      if (!run_task(task / tasks_per_head_, chunk * kTaskBlocks * kAmxBlock)) finite = false;
    });
    return finite;
  }

 private:
  using Vec = typename S::Vec;
  static constexpr int kColumns = S::kColumns;

  std::int64_t heads() const { return s_.batch * s_.kv_heads; }

  std::int64_t query_size() const { return 2 * layout_.key_steps * kTileSize; }

  std::int64_t out_size() const { return layout_.value_tiles * kTileRows * kAmxBlock; }

  PackedBlock packed(std::int64_t head, std::int64_t key) const {
    return layout_.block(reinterpret_cast<BFloat16*>(memory_.floats()),
                         head * layout_.blocks + key / kKeyBlock);
  }

  bool pack(std::int64_t head, std::int64_t key, PackedBlock to) const {
    return pack_block<S>(t_, layout_, head / s_.kv_heads, head % s_.kv_heads, key, to);
  }

  bool pack_all() const {
    std::atomic<bool> finite = true;
    parallel_for(heads() * layout_.blocks, [&](std::int64_t index, int) {
      const std::int64_t head = index / layout_.blocks, key = index % layout_.blocks * kKeyBlock;
      if (!pack(head, key, packed(head, key))) finite = false;
    });
    return finite;
  }

  /// False where it packed a key or a value that is not finite.
  bool run_task(std::int64_t head, std::int64_t first_row) const {
    const std::int64_t block_size = query_size() * 2 + out_size() * 4;
    const std::int64_t own_size = packs_blocks_ ? layout_.block_size() : 0;
    Arena arena{
        .base = thread_scratch(sizeof(AmxScratch<S>) + own_size * 2 + kTaskBlocks * block_size)};
    AmxScratch<S>& m = *arena.take<AmxScratch<S>>(1);
    const PackedBlock own = layout_.block(arena.take<BFloat16>(own_size), 0);
    const std::int64_t rows = s_.q_len * s_.group();
    int count = 0;
    for (std::int64_t row = first_row; count < kTaskBlocks && row < rows;
         row += kAmxBlock, ++count) {
      AmxBlock<S>& block = m.block[count];
      block.query = arena.take<BFloat16>(query_size());
      block.out = arena.take<float>(out_size());
      const std::int64_t left = rows - row;
      begin_block(block, head, row, static_cast<int>(left < kAmxBlock ? left : kAmxBlock));
    }
    std::int64_t first = s_.kv_len, last = 0;
    for (int i = 0; i < count; ++i) {
      first = m.block[i].lanes.min_first < first ? m.block[i].lanes.min_first : first;
      last = m.block[i].lanes.max_last > last ? m.block[i].lanes.max_last : last;
    }
    bool finite = true;
    for (std::int64_t key = first - first % kKeyBlock; key < last; key += kKeyBlock) {
      if (packs_blocks_) finite &= pack(head, key, own);
      const PackedBlock keys = packs_blocks_ ? own : packed(head, key);
      for (int i = 0; i < count; ++i) run_keys(m, m.block[i], keys, key);
    }
    for (int i = 0; i < count; ++i) end_block(m.block[i]);
    return finite;
  }

  void begin_block(AmxBlock<S>& block, std::int64_t head, std::int64_t row, int count) const {
    block.lanes = make_lanes(s_, head / s_.kv_heads, head % s_.kv_heads, row, count);
    const BFloat16* rows[kAmxBlock];
    find_lanes(t_.query, block.lanes, rows);
    pack_columns<S>(rows, s_.qk_dim, block.query);
    __builtin_memset(block.out, 0, static_cast<std::size_t>(out_size()) * sizeof(float));
    alignas(64) float row_max[kAmxBlock], row_sum[kAmxBlock];
    for (int lane = 0; lane < kAmxBlock; ++lane) {
      row_max[lane] = s_.has_sinks && lane < count ? sink_logit(t_.sinks, block.lanes.head[lane])
                                                   : kMinusInfinity;
      row_sum[lane] = row_max[lane] == kMinusInfinity ? 0 : 1 + (row_max[lane] - row_max[lane]);
    }
    unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
      block.row_max[j] = S::load(row_max + j * S::kLanes);
      block.row_sum[j] = S::load(row_sum + j * S::kLanes);
      block.rounded_sum[j] = block.row_sum[j];
    });
  }

  void run_keys(AmxScratch<S>& m, AmxBlock<S>& block, PackedBlock keys, std::int64_t key) const {
    const int end = static_cast<int>(s_.kv_len - key < kKeyBlock ? s_.kv_len - key : kKeyBlock);
    const Coverage coverage = survey<S>(t_.mask, block.lanes, key, 0, end, m.mask);
    if (coverage == Coverage::kNone) return;
    const bool is_masked = coverage == Coverage::kPartial;
    if (s_.dropout.is_active())
      choose_kept<S>(s_.dropout, s_.q_heads, block.lanes, key, m.mask.begin, m.mask.end, m.mask);
    const int begin = m.mask.begin / kAmxBlock * kAmxBlock;
    const int padded = static_cast<int>(round_up(m.mask.end, kAmxBlock));
    const bool is_raw = !is_masked && softcap_.cap == 0 && scale_ > 0;
    const Vec unit = S::broadcast(is_raw ? scale_ : 1);  // from what is stored to base 2
    int pending = begin;  // the first key that the output does not have yet
    for (int first = begin; first < padded; first += kScoreStep) {
      const int count = padded - first < kScoreStep ? padded - first : kScoreStep;
      scores(m, block, keys, first, count);
      if (!is_raw) finish_scores(m, first, count, is_masked);
      hide(m, 0, m.mask.begin - first);
      hide(m, m.mask.end - first, count);
      const LaneMax top = largest(m, count, unit);
      if (exceeds(top, block)) {
        accumulate(m, block, keys, pending, first);
        pending = first;
        rescale(block, top);
      }
      if (s_.dropout.is_active())
        probabilities<true>(m, block, first, count, unit);
      else
        probabilities<false>(m, block, first, count, unit);
    }
    accumulate(m, block, keys, pending, padded);
  }

  /// S^T for `count` keys.
  void scores(AmxScratch<S>& m, const AmxBlock<S>& block, PackedBlock packed, int first,
              int count) const {
    const std::int64_t row_of_tiles = layout_.key_steps * kTileSize;
    for (int row = 0; row < count; row += kAmxBlock)
      multiply_lanes<Tiles>(m.scores[row], packed.keys + (first + row) / kTileRows * row_of_tiles,
                            block.query, layout_.key_steps);
  }

  /// Scale, soft cap and mask, in place.
  void finish_scores(AmxScratch<S>& m, int first, int count, bool is_masked) const {
    constexpr int kRows = S::kRows;
    for (int row = 0; row < count; row += kRows) {
      Tile<S, kRows, kColumns> tile;
      load(tile, m.scores[row], kAmxBlock);
      scale(tile, scale_);
      if (softcap_.cap > 0) apply_softcap(softcap_, tile);
      if (is_masked) apply_mask(m.mask, first + row, tile);
      store(tile, m.scores[row], kAmxBlock);
    }
  }

  /// Rows [first, last) of the scores: keys beyond the surveyed range.
  static void hide(AmxScratch<S>& m, int first, int last) {
    for (int row = first; row < last; ++row)
      unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
        S::store(m.scores[row] + j * S::kLanes, S::broadcast(kMinusInfinity));
      });
  }

  struct LaneMax {
    Vec lanes[kColumns];
  };

  static SDPA_INLINE LaneMax largest(const AmxScratch<S>& m, int count, Vec unit) {
    LaneMax top;
    unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
      Vec score[4];  // one would wait for itself
      const auto load = [&](int row)
                            SDPA_INLINE_LAMBDA { return S::load(m.scores[row] + j * S::kLanes); };
      unroll<4>([&](auto n) SDPA_INLINE_LAMBDA { score[n] = load(n); });
      for (int row = 4; row < count; row += 4)
        unroll<4>([&](auto n) SDPA_INLINE_LAMBDA { score[n] = S::max(load(row + n), score[n]); });
      const Vec most = S::max(S::max(score[0], score[1]), S::max(score[2], score[3]));
      top.lanes[j] = S::mul(most, unit);
    });
    return top;
  }

  static SDPA_INLINE bool exceeds(Vec top, Vec row_max) { return S::any(S::greater(top, row_max)); }

  /// Whether some score is above its lane's maximum so far.
  static SDPA_INLINE bool exceeds(const LaneMax& top, const AmxBlock<S>& block) {
    bool any = false;
    unroll<kColumns>([&](auto j)
                         SDPA_INLINE_LAMBDA { any |= exceeds(top.lanes[j], block.row_max[j]); });
    return any;
  }

  /// Raises the running maximum, and rescales what was summed with the old one: O and l.
  void rescale(AmxBlock<S>& block, const LaneMax& top) const {
    unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
      if (!exceeds(top.lanes[j], block.row_max[j])) return;
      const Vec row_max = S::max(top.lanes[j], block.row_max[j]);
      const Vec finite_max =
          S::select(S::greater(row_max, S::broadcast(kMinusInfinity)), row_max, S::zero());
      const Vec factor = exp2<S>(S::sub(block.row_max[j], finite_max));
      block.row_max[j] = row_max;
      block.row_sum[j] = S::mul(block.row_sum[j], factor);
      block.rounded_sum[j] = S::mul(block.rounded_sum[j], factor);
      float* out = block.out + j * S::kLanes;
      for (std::int64_t i = 0; i < out_size(); i += kAmxBlock)
        S::store(out + i, S::mul(S::load(out + i), factor));
    });
  }

  /// P^T = exp2(S^T - m) for `count` keys, rounded to pairs of keys. Four pairs in a row, or the
  /// compiler keeps constants in memory (D64 on one Granite Rapids core: from 13.2 to 12.2 ms).
  template <bool kDrops>
  void probabilities(AmxScratch<S>& m, AmxBlock<S>& block, int first, int count, Vec unit) const {
    unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
      const Vec seen = S::select(S::greater(block.row_max[j], S::broadcast(kMinusInfinity)),
                                 S::sub(S::zero(), block.row_max[j]), S::zero());
      const auto exponentiate = [&](int row) SDPA_INLINE_LAMBDA {
        return exp2<S, Rounding::kTo16Bits>(
            S::multiply_add(S::load(m.scores[row] + j * S::kLanes), unit, seen));
      };
      Vec sum = block.row_sum[j], rounded_sum = block.rounded_sum[j];
      const auto pair_of_keys = [&](int row) SDPA_INLINE_LAMBDA {
        const Vec even = exponentiate(row), odd = exponentiate(row + 1);
        Vec low = S::round_to_bfloat16(even), high = S::round_to_bfloat16(odd);
        sum = S::add(sum, S::add(even, odd));
        rounded_sum = S::add(rounded_sum, S::add(low, high));
        if constexpr (kDrops) {
          low = S::keep(sees<S>(m.mask.kept, first + row, j), low);
          high = S::keep(sees<S>(m.mask.kept, first + row + 1, j), high);
        }
        _mm512_store_si512(m.probabilities[(first + row) / 2][j * S::kLanes],
                           join_pairs(low, high));
      };
      for (int row = 0; row < count; row += 8)
        unroll<4>([&](auto n) SDPA_INLINE_LAMBDA { pair_of_keys(row + 2 * n); });
      block.row_sum[j] = sum;
      block.rounded_sum[j] = rounded_sum;
    });
  }

  /// O^T += V^T P^T for keys [begin, end) of the block.
  void accumulate(AmxScratch<S>& m, AmxBlock<S>& block, PackedBlock packed, int begin,
                  int end) const {
    if (begin == end) return;
    const std::int64_t row_of_tiles = layout_.value_tiles * kTileSize;
    const BFloat16* values = packed.values + begin / kTileDepth * row_of_tiles;
    add_weighted<Tiles>(block.out, values, layout_.value_tiles, m.probabilities[begin / 2][0],
                        (end - begin) / kTileDepth);
  }

  /// O = O^T / l and LSE; a row that saw nothing is 0 and -infinity.
  void end_block(AmxBlock<S>& block) const {
    alignas(64) float row_max[kAmxBlock], row_sum[kAmxBlock], factor[kAmxBlock];
    unroll<kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
      S::store(row_max + j * S::kLanes, block.row_max[j]);
      S::store(row_sum + j * S::kLanes, block.row_sum[j]);
      S::store(factor + j * S::kLanes, block.rounded_sum[j]);
    });
    BFloat16* rows[kAmxBlock] = {};
    const auto rescale = static_cast<float>(s_.dropout.rescale());
    for (int lane = 0; lane < block.lanes.count; ++lane) {
      rows[lane] = const_cast<BFloat16*>(
          reinterpret_cast<const BFloat16*>(row_address(t_.out, block.lanes, lane)));
      const float sum = row_sum[lane];
      const float divisor = factor[lane] + (sum - sum);  // rounded sums may have lost a NaN
      factor[lane] = sum == 0 ? 0 : rescale / divisor;
      if (t_.lse.is_present())
        *t_.lse.at<float>(block.lanes.batch, block.lanes.head[lane], block.lanes.query[lane]) =
            sum == 0 ? kMinusInfinity : log_sum_exp(row_max[lane], sum);
    }
    transpose_out<S>(block.out, kAmxBlock, factor, block.lanes.count, s_.v_dim, rows);
  }

  const Problem& s_;
  const ForwardTensors& t_;
  PackedLayout layout_;
  std::int64_t tasks_per_head_;
  bool packs_blocks_;  ///< each task by itself
  KeptMemory memory_;
  Softcap softcap_;
  float scale_;
};

}  // namespace
}  // namespace sdpa::cpu
