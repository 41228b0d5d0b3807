// SPDX-License-Identifier: MIT
#pragma once

// One step of the forward pass: one block of lanes meets one range of keys. The algorithm and its
// reasons are at the top of forward.h.

#include "sdpa/cpu/beside.h"
#include "sdpa/cpu/score.h"
#include "sdpa/cpu/stage.h"

namespace sdpa::cpu {

/// What the exponentials of a range of keys above a stale maximum may sum up to.
constexpr float kLargestStaleSum = 0x1p12f;

/// Where probabilities are rounded, the maximum is exact as long as they sum up to less: the
/// largest is 1 then, which bfloat16 holds exactly (33 to 1100 keys: outputs from 1.04 to 1.06
/// times torch's distance from double precision to 0.98 or 0.99; not measurable in time).
constexpr float kFewProbabilities = 32;

constexpr BFloat16Pair kPairOfOnes{0x3f803f80};

/// What scores need besides the product: nothing, a mask, or that, a soft cap and dropout.
enum class Rules : std::uint8_t { kPlain, kMask, kAll };

/// One block of lanes and its running softmax.
template <class S, typename Element>
struct LaneBlock {
  static constexpr int kWidth = S::kLanes * S::kColumns;
  /// Of probabilities, and, where these are rounded to 16 bits, of them as the output takes them:
  /// the first makes the log-sum-exp, the last is what the output is divided by (bfloat16, large
  /// scores: outputs from 1.25 to 1.0 times torch's distance from double precision).
  static constexpr int kSums = kElementsPerWord<Element>;

  Lanes lanes;
  bool is_started = false;
  Element* queries = nullptr;  ///< [words of qk_dim][kWidth]
  float* out = nullptr;        ///< [v_dim][kWidth]
  alignas(64) float row_max[kWidth];
  alignas(64) float base[kWidth];  ///< row_max, or the lowest finite float where that is -inf
  alignas(64) float row_sum[kSums][kWidth];
  alignas(64) float rescale[kWidth];

  /// What the output of kLanes lanes is divided by. A rounded NaN may not be one.
  SDPA_INLINE typename S::Vec divisor(int lane) const {
    const auto sum = S::load(row_sum[kSums - 1] + lane);
    return kSums == 1 ? sum : S::multiply_add(S::load(row_sum[0] + lane), S::zero(), sum);
  }
};

/// What every step of a task needs.
template <class S, typename Element>
struct ForwardContext {
  static constexpr int kWidth = S::kLanes * S::kColumns;

  const Problem& problem;
  const ForwardTensors& tensors;
  Softcap softcap;
  bool is_dropping = false;
  float score_scale = 1;  ///< what the product still has to be multiplied by
  KeyBlock<Element> keys;
  ScoreMask<S>* mask = nullptr;
  float* scores = nullptr;           ///< [kKeyBlock][kWidth]
  float* waiting = nullptr;          ///< [S::kRows][kWidth]: products, see beside.h
  Element* probabilities = nullptr;  ///< [words of kKeyBlock][kWidth]
  Ahead ahead;
};

/// One range of keys for one block of lanes.
template <class S, typename Element, int Columns, Rules kRules>
struct ForwardStep {
  static constexpr int kWidth = S::kLanes * S::kColumns;
  static constexpr int kSums = LaneBlock<S, Element>::kSums;
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
    if (takes_exact_maximum() || !exponentiate_with_stale_maximum()) {
      exponentiate_with_new_maximum();
      is_rescaled = block.is_started;
    }
    const int piece = static_cast<int>(key_piece(context.problem));
    for (int first = begin; first < end; first += piece) {
      accumulate(first, end - first < piece ? end : first + piece, is_rescaled);
      is_rescaled = false;
      block.is_started = true;
    }
  }

 private:
  /// Of each lane over one range of keys: the maximum, the sums.
  using LaneFloats = float[kWidth];
  using LaneSums = float[kSums][kWidth];

  /// What makes probabilities of the products of keys and queries: see beside.h.
  struct Exponentials {
    static constexpr int kAtOnce = kElementsPerWord<Element>;

    ForwardStep& step;
    LaneSums& sums;
    /// Of the current column: the maximum, negative where `above` wants it so, the sums so far, and
    /// where the next probabilities go.
    typename S::Vec base = S::zero(), sum[kSums] = {};
    Element* to = nullptr;

    template <int Rows>
    SDPA_INLINE void complete(ScoreTile<Rows>& tile) {
      step.complete(tile);
    }

    SDPA_INLINE void arrive(int key, int rows) {
      if (!step.block.is_started && key == step.begin) step.raise_maximum_to(key, rows);
      step.context.ahead.ask();
    }

    SDPA_INLINE void begin(int key, int j) {
      base = S::load(step.block.base + j * S::kLanes);
      if constexpr (kScalesLate) base = S::sub(S::zero(), base);
      unroll<kSums>([&](auto n) SDPA_INLINE_LAMBDA { sum[n] = S::zero(); });
      to = step.context.probabilities + key / kElementsPerWord<Element> * kWidth + j * S::kLanes;
    }

    template <int Count>
    SDPA_INLINE void finish(int key, int j, typename S::Vec (&scores)[Count]) {
      unroll<Count>([&](auto i)
                        SDPA_INLINE_LAMBDA { scores[i] = step.masked(key + i, j, scores[i]); });
      exponentiate(key, j, scores);
    }

    template <int Count>
    SDPA_INLINE void exponentiate(int key, int j, typename S::Vec (&scores)[Count]) {
      unroll<Count>([&](auto i) SDPA_INLINE_LAMBDA {
        scores[i] = exp2<S, kPairs ? Rounding::kTo16Bits : Rounding::kFloat>(above(scores[i]));
        sum[0] = S::add(sum[0], scores[i]);
      });
      if constexpr (kPairs)
        sum[1] = S::multiply_add(packed(scores), S::broadcast(kPairOfOnes), sum[1]);
      if (step.is_dropping())
        unroll<Count>([&](auto i) SDPA_INLINE_LAMBDA {
          scores[i] = S::keep(sees<S>(step.context.mask->kept, key + i, j), scores[i]);
        });
      S::store(to, packed(scores));
      to += kWidth;
    }

    /// Words of the products to come.
    template <int Count>
    static SDPA_INLINE auto packed(const typename S::Vec (&p)[Count]) {
      if constexpr (kPairs)
        return S::pack_pairs(p[0], Count > 1 ? p[Count - 1] : S::zero());
      else
        return p[0];
    }

    SDPA_INLINE typename S::Vec above(typename S::Vec score) const {
      if constexpr (kScalesLate)
        return S::multiply_add(score, S::broadcast(step.context.score_scale), base);
      else
        return S::sub(score, base);
    }

    SDPA_INLINE void end(int j) {
      unroll<kSums>([&](auto n) SDPA_INLINE_LAMBDA {
        float* total = sums[n] + j * S::kLanes;
        S::store(total, S::add(S::load(total), sum[n]));
      });
    }
  };

  /// What makes scores of the products, and finds the largest of each lane.
  struct Scores {
    static constexpr int kAtOnce = 1;

    ForwardStep& step;
    LaneFloats& largest;
    typename S::Vec most = S::zero();
    float* to = nullptr;

    template <int Rows>
    SDPA_INLINE void complete(ScoreTile<Rows>& tile) {
      step.complete(tile);
    }

    SDPA_INLINE void arrive(int, int) { step.context.ahead.ask(); }

    SDPA_INLINE void begin(int key, int j) {
      most = S::load(largest + j * S::kLanes);
      to = step.context.scores + key * kWidth + j * S::kLanes;
    }

    SDPA_INLINE void finish(int key, int j, typename S::Vec (&scores)[1]) {
      const auto score = step.masked(key, j, scores[0]);
      most = S::max(step.fully_scaled(score), most);
      S::store(to, score);
      to += kWidth;
    }

    SDPA_INLINE void end(int j) { S::store(largest + j * S::kLanes, most); }
  };

  Product<Element> product() const {
    const auto& keys = context.keys;
    return {keys.keys,
            keys.key_stride,
            block.queries,
            kWidth,
            words<Element>(context.problem.qk_dim),
            score_piece(context.problem),
            begin,
            end};
  }

  /// Scores from products, but for the mask and for the factor that may be late. A soft cap's chain
  /// of dependent instructions is longer than what the processor looks ahead beside products; a
  /// whole tile has many.
  template <int Rows>
  SDPA_INLINE void complete(ScoreTile<Rows>& tile) const {
    if constexpr (kPairs && !kScalesLate) scale(tile, context.score_scale);
    if constexpr (kRules == Rules::kAll)
      if (context.softcap.cap > 0) apply_softcap(context.softcap, tile);
  }

  SDPA_INLINE typename S::Vec masked(int key, int j, typename S::Vec x) const {
    const bool is_masked = kRules == Rules::kAll && coverage == Coverage::kPartial;
    return kRules == Rules::kMask || is_masked ? mask_score(*context.mask, key, j, x) : x;
  }

  SDPA_INLINE typename S::Vec fully_scaled(typename S::Vec score) const {
    return kScalesLate ? S::mul(score, S::broadcast(context.score_scale)) : score;
  }

  /// False, with row_sum as it was, where a lane's scores have outgrown the maximum, as their
  /// exponentials show by being large or NaN.
  bool exponentiate_with_stale_maximum() {
    alignas(64) LaneSums sums = {};
    multiply_and_finish<S, Columns>(product(), context.waiting, kWidth, Exponentials{*this, sums});
    if (is_stale(sums)) return false;
    add_to_row_sum(sums);
    return true;
  }

  /// Whether it is clear beforehand that a stale maximum will not do: some lane has none yet, but
  /// will see a key, or rounding its few probabilities would show.
  bool takes_exact_maximum() const {
    if (!block.is_started) return kPairs || coverage == Coverage::kPartial;
    bool any = false;
    for (int lane = 0; lane < Columns * S::kLanes; lane += S::kLanes) {
      any |= coverage == Coverage::kFull && S::any(has_no_maximum(lane));
      if constexpr (kPairs)
        any |=
            S::any(S::greater(S::broadcast(kFewProbabilities), S::load(block.row_sum[0] + lane)));
    }
    return any;
  }

  SDPA_INLINE typename S::Mask has_no_maximum(int lane) const {
    return S::not_less(S::broadcast(kMinusInfinity), S::load(block.row_max + lane));
  }

  /// Whether a sum is large or NaN, or a lane without a maximum has seen its first key: one with a
  /// score so low that its exponential is not large even above the lowest float.
  bool is_stale(const LaneSums& sums) const {
    bool any = false;
    for (int lane = 0; lane < Columns * S::kLanes; lane += S::kLanes) {
      const auto sum = S::load(sums[0] + lane);
      any |= S::any(S::not_less(sum, S::broadcast(kLargestStaleSum)));
      any |= S::any(S::both(S::greater(sum, S::zero()), has_no_maximum(lane)));
    }
    return any;
  }

  void add_to_row_sum(const LaneSums& sums) {
    for (int n = 0; n < kSums; ++n)
      for (int lane = 0; lane < Columns * S::kLanes; lane += S::kLanes) {
        float* to = block.row_sum[n] + lane;
        S::store(to, S::add(S::load(to), S::load(sums[n] + lane)));
      }
  }

  /// The first keys of a block of lanes, whose products are waiting, give it a maximum to begin
  /// with.
  void raise_maximum_to(int key, int rows) {
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
      auto largest = S::load(block.row_max + j * S::kLanes);
      for (int i = 0; i < rows; ++i) {
        const auto x = S::load(context.waiting + i * kWidth + j * S::kLanes);
        largest = S::max(fully_scaled(masked(key + i, j, x)), largest);
      }
      raise_maximum(j, largest);
    });
  }

  void exponentiate_with_new_maximum() {
    alignas(64) LaneFloats largest;
    alignas(64) LaneSums sums = {};
    __builtin_memcpy(largest, block.row_max, sizeof largest);
    multiply_and_finish<S, Columns>(product(), context.waiting, kWidth, Scores{*this, largest});
    Exponentials finish{*this, sums};
    unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
      raise_maximum(j, S::load(largest + j * S::kLanes));
      exponentiate_column(finish, j);
    });
    add_to_row_sum(sums);
  }

  /// As many keys are summed up at a time as have products at a time: one sum over all of a block
  /// would be less exact (additive mask, 128 keys: outputs 1.13 instead of 1.0 times as far from
  /// double precision as torch's).
  void exponentiate_column(Exponentials& finish, int j) {
    for (int first = begin; first < end; first += S::kRows) {
      finish.begin(first, j);
      exponentiate_keys(finish, j, first, first + S::kRows < end ? first + S::kRows : end);
      finish.end(j);
    }
  }

  SDPA_INLINE void exponentiate_keys(Exponentials& finish, int j, int first, int last) {
    for_row_pieces<Exponentials::kAtOnce>(
        first, last, [&](auto count, std::int64_t key) SDPA_INLINE_LAMBDA {
          typename S::Vec scores[count];
          unroll<count>([&](auto i) SDPA_INLINE_LAMBDA {
            scores[i] = S::load(context.scores + (key + i) * kWidth + j * S::kLanes);
          });
          finish.exponentiate(static_cast<int>(key), j, scores);
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
    unroll<kSums>([&](auto n) SDPA_INLINE_LAMBDA {
      float* sum = block.row_sum[n] + lane;
      S::store(sum, S::mul(S::load(sum), rescale));
    });
  }

  /// Adds the sums of this range to O as it stands before it: nothing yet, as it is, or rescaled.
  template <int Rows>
  SDPA_INLINE void add_to_out(std::int64_t d, bool is_rescaled, ScoreTile<Rows>& tile) {
    float* out = block.out + d * kWidth;
    if (block.is_started)
      unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
        const auto rescale = S::load(block.rescale + j * S::kLanes);
        unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA {
          const auto before = S::load(out + i * kWidth + j * S::kLanes);
          auto& sum = tile.v[i][j];
          sum = is_rescaled ? S::multiply_add(before, rescale, sum) : S::add(before, sum);
        });
      });
    store(tile, out, kWidth);
  }

  /// Keys [first, last) are summed up from zero: continued from O, every key's rounding would be
  /// that of the sum over all keys before it.
  void accumulate(int first, int last, bool is_rescaled) {
    const auto& keys = context.keys;
    const std::int64_t word = first / kElementsPerWord<Element>;
    for_row_pieces<S::kRows>(
        0, context.problem.v_dim, [&](auto rows, std::int64_t d) SDPA_INLINE_LAMBDA {
          ScoreTile<rows> tile;
          clear(tile);
          multiply_columns(tile, keys.values + word * keys.value_stride + d, keys.value_stride,
                           context.probabilities + word * kWidth, kWidth,
                           words<Element>(last - first));
          if (may_be_spoiled() && !is_finite(tile) && is_spoiled())
            return accumulate_seen(first, last, d, rows, is_rescaled);
          add_to_out(d, is_rescaled, tile);
        });
  }

  bool is_dropping() const { return kRules == Rules::kAll && context.is_dropping; }

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
  void accumulate_seen(int first, int last, std::int64_t column, int count, bool is_rescaled) {
    for (std::int64_t d = column; d < column + count; ++d) {
      ScoreTile<1> none;
      clear(none);
      add_to_out(d, is_rescaled, none);
    }
    for (int key = first; key < last; ++key)
      for (int lane = 0; lane < block.lanes.count; ++lane)
        if (is_seen(key, lane)) accumulate_key(key, lane, column, count);
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
