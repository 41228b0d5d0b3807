// SPDX-License-Identifier: MIT
#pragma once

// One step of the forward pass: one block of lanes meets one range of keys. The algorithm and its
// reasons are at the top of forward.h.

#include "sdpa/cpu/score.h"
#include "sdpa/cpu/stage.h"

namespace sdpa::cpu {

/// What exponentials above a stale maximum may sum up to over a tile of keys.
constexpr float kLargestStaleSum = 0x1p8f;

/// Whether scores need anything but the product.
enum class Rules : std::uint8_t { kPlain, kAll };

/// One block of lanes and its running softmax.
template <class S, typename Element>
struct LaneBlock {
  static constexpr int kWidth = S::kLanes * S::kColumns;

  Lanes lanes;
  bool is_started = false;
  Element* queries = nullptr;  ///< [words of qk_dim][kWidth]
  float* out = nullptr;        ///< [v_dim][kWidth]
  alignas(64) float row_max[kWidth];
  alignas(64) float base[kWidth];  ///< row_max, or the lowest finite float where that is -inf
  alignas(64) float row_sum[kWidth];
  alignas(64) float rescale[kWidth];
};

/// What every step of a task needs.
template <class S, typename Element>
struct ForwardContext {
  static constexpr int kWidth = S::kLanes * S::kColumns;

  const Problem& problem;
  const ForwardTensors& tensors;
  Softcap softcap;
  float score_scale = 1;  ///< what the product still has to be multiplied by
  KeyBlock<Element> keys;
  ScoreMask<S>* mask = nullptr;
  float* scores = nullptr;           ///< [kKeyBlock][kWidth]
  Element* probabilities = nullptr;  ///< [words of kKeyBlock][kWidth]
  Ahead ahead;
};

/// One range of keys for one block of lanes.
template <class S, typename Element, int Columns, Rules kRules>
struct ForwardStep {
  static constexpr int kWidth = S::kLanes * S::kColumns;
  static constexpr bool kPairs = kElementsPerWord<Element> == 2;
  /// Products of pairs lack a factor, which can wait until the maximum is subtracted if there is
  /// nothing else to do.
  static constexpr bool kScalesLate = kPairs && kRules == Rules::kPlain;

  template <int Rows>
  using ScoreTile = Tile<S, Rows, Columns>;

  ForwardContext<S, Element>& context;
  LaneBlock<S, Element>& block;
  Coverage coverage;
  int begin, end;

  void run() {
    context.ahead.spread((end - begin + S::kRows - 1) / S::kRows);
    bool is_rescaled = false;
    if (!exponentiate_with_stale_maximum()) {
      exponentiate_with_new_maximum();
      is_rescaled = block.is_started;
    }
    accumulate(is_rescaled);
    block.is_started = true;
  }

 private:
  template <int Rows>
  SDPA_INLINE void compute_scores(int key, ScoreTile<Rows>& tile) {
    const auto& keys = context.keys;
    context.ahead.ask();
    clear(tile);
    multiply_rows(tile, keys.keys + key * keys.key_stride, keys.key_stride, block.queries, kWidth,
                  words<Element>(context.problem.qk_dim));
    if constexpr (kPairs && !kScalesLate) scale_scores(tile);
    if constexpr (kRules == Rules::kAll) {
      if (context.softcap.cap > 0) apply_softcap(context.softcap, tile);
      if (coverage == Coverage::kPartial) apply_mask(*context.mask, key, tile);
    }
  }

  template <int Rows>
  SDPA_INLINE void scale_scores(ScoreTile<Rows>& tile) {
    const auto scale = S::broadcast(context.score_scale);
    unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA {
      unroll<Columns>([&](auto j)
                          SDPA_INLINE_LAMBDA { tile.v[i][j] = S::mul(tile.v[i][j], scale); });
    });
  }

  /// Probabilities from scores, and dropout on what is stored. Returns their sums before that.
  template <int Rows>
  SDPA_INLINE typename S::Vec exponentiate(int key, ScoreTile<Rows>& tile) {
    auto all = S::zero();
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
      const auto base = S::load(block.base + j * S::kLanes);
      auto sum = S::zero();
      unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA {
        tile.v[i][j] = exp2<S, kPairs ? 3 : 5>(above(base, tile.v[i][j]));
        sum = S::add(sum, tile.v[i][j]);
      });
      float* total = block.row_sum + j * S::kLanes;
      S::store(total, S::add(S::load(total), sum));
      all = S::add(all, sum);
    });
    if constexpr (kRules == Rules::kAll)
      if (context.problem.dropout.is_active()) apply_dropout(*context.mask, key, tile);
    store_probabilities(key, tile);
    return all;
  }

  SDPA_INLINE typename S::Vec above(typename S::Vec base, typename S::Vec score) const {
    if constexpr (kScalesLate)
      return S::multiply_add(score, S::broadcast(context.score_scale), S::sub(S::zero(), base));
    else
      return S::sub(score, base);
  }

  template <int Rows>
  SDPA_INLINE void store_probabilities(int key, const ScoreTile<Rows>& tile) {
    Element* to = context.probabilities + key / kElementsPerWord<Element> * kWidth;
    if constexpr (!kPairs) {
      store(tile, to, kWidth);
    } else {
      unroll<(Rows + 1) / 2>([&](auto i) SDPA_INLINE_LAMBDA {
        unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
          auto odd = S::zero();
          if constexpr (2 * i + 1 < Rows) odd = tile.v[2 * i + 1][j];
          S::store(to + i * kWidth + j * S::kLanes, S::pack_pairs(tile.v[2 * i][j], odd));
        });
      });
    }
  }

  /// False, with row_sum as it was, where a lane's scores have outgrown the maximum, as their
  /// exponentials show by being large or NaN.
  bool exponentiate_with_stale_maximum() {
    alignas(64) float saved[kWidth];
    __builtin_memcpy(saved, block.row_sum, sizeof saved);
    bool fits = true;
    for_row_pieces<S::kRows>(begin, end, [&](auto rows, std::int64_t at) SDPA_INLINE_LAMBDA {
      if (!fits) return;
      const int key = static_cast<int>(at);
      ScoreTile<rows> tile;
      compute_scores(key, tile);
      if (!block.is_started && key == begin) {
        raise_maximum_to(tile);
        __builtin_memcpy(saved, block.row_sum, sizeof saved);
      }
      fits = !S::any(S::not_less(exponentiate(key, tile), S::broadcast(kLargestStaleSum)));
    });
    fits = fits && !has_new_lane();
    if (!fits) __builtin_memcpy(block.row_sum, saved, sizeof saved);
    return fits;
  }

  /// Whether a lane without a maximum has seen its first key: one with a score so low that its
  /// exponential is not large even above the lowest float.
  bool has_new_lane() const {
    bool any = false;
    for (int lane = 0; lane < Columns * S::kLanes; lane += S::kLanes)
      any |=
          S::any(S::both(S::greater(S::load(block.row_sum + lane), S::zero()),
                         S::not_less(S::broadcast(kMinusInfinity), S::load(block.row_max + lane))));
    return any;
  }

  /// The first keys of a block of lanes give it a maximum to begin with.
  template <int Rows>
  SDPA_INLINE void raise_maximum_to(const ScoreTile<Rows>& tile) {
    const ScoreTile<Rows> scaled = fully_scaled(tile);
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
      auto largest = S::load(block.row_max + j * S::kLanes);
      unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA { largest = S::max(scaled.v[i][j], largest); });
      raise_maximum(j, largest);
    });
  }

  template <int Rows>
  SDPA_INLINE ScoreTile<Rows> fully_scaled(ScoreTile<Rows> tile) {
    if constexpr (kScalesLate) scale_scores(tile);
    return tile;
  }

  void exponentiate_with_new_maximum() {
    typename S::Vec largest[Columns];
    unroll<Columns>(
        [&](auto j) SDPA_INLINE_LAMBDA { largest[j] = S::load(block.row_max + j * S::kLanes); });
    for_row_pieces<S::kRows>(begin, end, [&](auto rows, std::int64_t at) SDPA_INLINE_LAMBDA {
      const int key = static_cast<int>(at);
      ScoreTile<rows> tile;
      compute_scores(key, tile);
      const ScoreTile<rows> scaled = fully_scaled(tile);
      unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
        unroll<rows>([&](auto i)
                         SDPA_INLINE_LAMBDA { largest[j] = S::max(scaled.v[i][j], largest[j]); });
      });
      store(tile, context.scores + key * kWidth, kWidth);
    });
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA { raise_maximum(j, largest[j]); });
    for_row_pieces<S::kRows>(begin, end, [&](auto rows, std::int64_t at) SDPA_INLINE_LAMBDA {
      const int key = static_cast<int>(at);
      ScoreTile<rows> tile;
      load(tile, context.scores + key * kWidth, kWidth);
      exponentiate(key, tile);
    });
  }

  SDPA_INLINE void raise_maximum(int j, typename S::Vec largest) {
    const int lane = j * S::kLanes;
    const auto old = S::load(block.row_max + lane);
    const auto base = S::max(largest, S::broadcast(kLowest));
    const auto rescale = exp2<S>(S::sub(old, base));
    S::store(block.row_max + lane, largest);
    S::store(block.base + lane, base);
    S::store(block.rescale + lane, rescale);
    S::store(block.row_sum + lane, S::mul(S::load(block.row_sum + lane), rescale));
  }

  /// O as it stands before this range: zero, as it is, or rescaled.
  template <int Rows>
  SDPA_INLINE void load_out(std::int64_t d, bool is_rescaled, ScoreTile<Rows>& tile) {
    if (!block.is_started) return clear(tile);
    load(tile, block.out + d * kWidth, kWidth);
    if (!is_rescaled) return;
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
      const auto rescale = S::load(block.rescale + j * S::kLanes);
      unroll<Rows>([&](auto i)
                       SDPA_INLINE_LAMBDA { tile.v[i][j] = S::mul(tile.v[i][j], rescale); });
    });
  }

  void accumulate(bool is_rescaled) {
    const auto& keys = context.keys;
    const std::int64_t first = begin / kElementsPerWord<Element>;
    for_row_pieces<S::kRows>(
        0, context.problem.v_dim, [&](auto rows, std::int64_t d) SDPA_INLINE_LAMBDA {
          ScoreTile<rows> tile;
          load_out(d, is_rescaled, tile);
          multiply_columns(tile, keys.values + first * keys.value_stride + d, keys.value_stride,
                           context.probabilities + first * kWidth, kWidth,
                           words<Element>(end - begin));
          if (may_be_spoiled() && !is_finite(tile) && is_spoiled())
            return accumulate_seen(d, rows, is_rescaled);
          store(tile, block.out + d * kWidth, kWidth);
        });
  }

  bool is_dropping() const { return kRules == Rules::kAll && context.problem.dropout.is_active(); }

  /// Whether some lane does not see some key.
  bool may_be_spoiled() const { return coverage == Coverage::kPartial || is_dropping(); }

  /// Whether some value of the range is not finite. Looked at only once a sum is not finite.
  bool is_spoiled() const {
    const auto& keys = context.keys;
    std::uint32_t finite = ~0u;
    for (std::int64_t key = begin / kElementsPerWord<Element>;
         key * kElementsPerWord<Element> < end; ++key)
      finite &= finite_lanes<S>(keys.values + key * keys.value_stride, context.problem.v_dim);
    return finite != ~0u;
  }

  /// One lane, one key, one dimension at a time: rare, and never fast.
  void accumulate_seen(std::int64_t first, int count, bool is_rescaled) {
    for (std::int64_t d = first; d < first + count; ++d) {
      ScoreTile<1> tile;
      load_out(d, is_rescaled, tile);
      store(tile, block.out + d * kWidth, kWidth);
    }
    for (int key = begin; key < end; ++key)
      for (int lane = 0; lane < block.lanes.count; ++lane)
        if (is_seen(key, lane)) accumulate_key(key, lane, first, count);
  }

  bool is_seen(int key, int lane) const {
    const std::uint32_t bit = 1u << (key & 31);
    if (coverage == Coverage::kPartial && (context.mask->visible[key >> 5][lane] & bit) == 0)
      return false;
    return !is_dropping() || (context.mask->kept[key >> 5][lane] & bit) != 0;
  }

  void accumulate_key(int key, int lane, std::int64_t first, int count) {
    constexpr int kWords = kElementsPerWord<Element>;
    const int half = key % kWords;
    const float p = element_at(context.probabilities[key / kWords * kWidth + lane], half);
    const Element* values = context.keys.values + key / kWords * context.keys.value_stride;
    for (std::int64_t d = first; d < first + count; ++d)
      block.out[d * kWidth + lane] += p * element_at(values[d], half);
  }
};

}  // namespace sdpa::cpu
