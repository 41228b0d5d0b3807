// SPDX-License-Identifier: MIT
#pragma once

// From raw scores to masked ones, in one place for both passes and every instruction set.
//
// A tile of raw scores [keys][lanes] is in base-2 units: scale * log2(e) * q.k. In order:
//
//   apply_softcap   s = cap tanh(s / cap)                       (softcap_slope: its derivative)
//   apply_mask      s += bias; s = -inf where a lane does not see a key
//   apply_dropout   p = 0 where dropout takes it (the factor 1 / (1 - p) is applied to whole rows)
//
// What a lane sees is one bit a key: word[key / 32][lane], bit key % 32. Position (causal, window),
// bool masks and the -inf of additive masks all end up there, and so does dropout's choice in words
// of its own. A test of one constant bit against the lanes' words is then a predicate for a key, so
// a bool mask is read along its rows and never transposed. Additive values need a transposition;
// they are held as bias[key][lane], times log2(e).
//
// `survey` fills the words for a range of keys of a block, trims keys that no lane sees from its
// ends, and says whether anything is left to mask: ranges nobody sees cost nothing, and ranges that
// everybody sees are computed without masks. Additive values that hide nothing go straight from
// the tensor through the transposition (survey_bias).

#include <bit>

#include "sdpa/cpu/ahead.h"
#include "sdpa/cpu/lanes.h"
#include "sdpa/cpu/pieces.h"
#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

constexpr int kKeyWords = kKeyBlock / 32;
constexpr float kMinusInfinity = -__builtin_inff();

constexpr float kLowest = -0x1.fffffep127f;

enum class Coverage : std::uint8_t { kNone, kPartial, kFull };

/// What masks the scores of one block of lanes on one range of keys of a key block.
template <class S>
struct ScoreMask {
  static constexpr int kWidth = S::kLanes * S::kColumns;

  int begin = 0;  ///< keys [begin, end) of the block matter
  int end = 0;
  bool is_biased = false;
  bool hides = true;  ///< some lane may not see some key of the range
  alignas(64) std::uint32_t visible[kKeyWords][kWidth];
  alignas(64) std::uint32_t kept[kKeyWords][kWidth];
  alignas(64) float bias[kKeyBlock][kWidth];
  alignas(64) float rows[kWidth][kKeyBlock];  ///< bias before its transposition
};

/// Bits [first, last) of word number `word`, for bit positions that run over all words.
SDPA_INLINE std::uint32_t bits_between(std::int64_t first, std::int64_t last, int word) {
  const std::int64_t low = first - 32 * word < 0 ? 0 : first - 32 * word;
  const std::int64_t high = last - 32 * word > 32 ? 32 : last - 32 * word;
  if (low >= high) return 0;
  const std::uint64_t ones = (std::uint64_t{1} << high) - (std::uint64_t{1} << low);
  return static_cast<std::uint32_t>(ones);
}

/// One lane's bool mask for keys [begin, end) of a block; `row` points at the block's first key.
template <class S>
void read_bool_row(const std::uint8_t* row, std::int64_t stride, int begin, int end,
                   std::uint32_t (&bits)[kKeyWords]) {
  for (int word = 0; word < kKeyWords; ++word) {
    const int first = begin > 32 * word ? begin : 32 * word;
    const int last = end < 32 * (word + 1) ? end : 32 * (word + 1);
    bits[word] = 0;
    if (stride == 1 && last - first == 32) {
      bits[word] = S::byte_bits(row + first);
      continue;
    }
    for (int key = first; key < last; ++key)
      bits[word] |= static_cast<std::uint32_t>(row[key * stride] != 0) << (key & 31);
  }
}

template <class S>
SDPA_INLINE typename S::Vec load_mask_values(const double* from, int count) {
  float values[S::kLanes] = {};
  for (int i = 0; i < count; ++i) values[i] = static_cast<float>(from[i]);
  return S::load(values);
}

template <class S, typename Element>
SDPA_INLINE typename S::Vec load_mask_values(const Element* from, int count) {
  return count == S::kLanes ? S::load(from) : S::load_part(from, count);
}

/// One lane's additive mask: values times log2(e) into `values`, and which of them are not -inf.
/// Finite values stay finite, so that a row of the lowest float everywhere is uniform, not empty.
/// Returns whether a value other than 0 and -inf came.
template <class S, typename Element>
bool read_additive_row(const Element* row, std::int64_t stride, int begin, int end, float* values,
                       std::uint32_t (&bits)[kKeyWords]) {
  const auto lowest = S::broadcast(kLowest);
  std::uint32_t biased = 0;
  for (auto& word : bits) word = 0;
  for (int key = begin - begin % S::kLanes; key < end; key += S::kLanes) {
    const int first = key < begin ? begin : key;
    const int count = end - first < key + S::kLanes - first ? end - first : key + S::kLanes - first;
    Element gathered[S::kLanes] = {};
    const Element* from = row + first;
    if (stride != 1) {
      for (int i = 0; i < count; ++i) gathered[i] = row[(first + i) * stride];
      from = gathered;
    }
    const auto value = load_mask_values<S>(from, count);
    const std::uint32_t seen = S::to_bits(S::not_less(value, lowest)) & ((1u << count) - 1u);
    const auto zero = S::zero();
    biased |= seen & (S::to_bits(S::greater(value, zero)) | S::to_bits(S::greater(zero, value)) |
                      ~S::to_bits(S::is_finite(value)));
    bits[first >> 5] |= seen << (first & 31);
    S::store_part(values + first, S::max(lowest, S::mul(value, S::broadcast(kLog2E))), count);
  }
  return biased != 0;
}

template <class S>
bool read_mask_row(const TensorView& mask, const char* row, std::int64_t key, int begin, int end,
                   float* values, std::uint32_t (&bits)[kKeyWords]) {
  const std::int64_t stride = mask.strides[3];
  row += key * stride * size_bytes(mask.dtype);
  const auto additive = [&](auto* typed) {
    return read_additive_row<S>(typed, stride, begin, end, values, bits);
  };
  switch (mask.dtype) {
    case DType::kFloat64:
      return additive(reinterpret_cast<const double*>(row));
    case DType::kFloat32:
      return additive(reinterpret_cast<const float*>(row));
    case DType::kFloat16:
      return additive(reinterpret_cast<const Float16*>(row));
    case DType::kBFloat16:
      return additive(reinterpret_cast<const BFloat16*>(row));
    default:
      read_bool_row<S>(reinterpret_cast<const std::uint8_t*>(row), stride, begin, end, bits);
      return false;
  }
}

/// Fills the words of every lane (and the bias before transposition) from position and mask.
template <class S>
void gather_visibility(const TensorView& mask, const Lanes& lanes, std::int64_t key,
                       ScoreMask<S>& out) {
  const char* previous = nullptr;
  std::uint32_t bits[kKeyWords];
  for (int lane = 0; lane < ScoreMask<S>::kWidth; ++lane) {
    for (int word = 0; word < kKeyWords; ++word) out.visible[word][lane] = 0;
    if (lane >= lanes.count) continue;
    const char* row = row_address(mask, lanes, lane);
    const bool repeats = row != nullptr && row == previous;  // heads and queries may share a row
    if (row != nullptr && !repeats)
      out.is_biased |= read_mask_row<S>(mask, row, key, out.begin, out.end, out.rows[lane], bits);
    if (repeats && mask.dtype != DType::kBool)
      __builtin_memcpy(out.rows[lane], out.rows[lane - 1], sizeof out.rows[lane]);
    previous = row;
    const std::int64_t first = lanes.first[lane] - key, last = lanes.last[lane] - key;
    for (int word = 0; word < kKeyWords; ++word)
      out.visible[word][lane] = bits_between(first > out.begin ? first : out.begin,
                                             last < out.end ? last : out.end, word) &
                                (row != nullptr ? bits[word] : ~0u);
  }
}

template <class S>
void transpose_bias(const Lanes& lanes, ScoreMask<S>& out) {
  const float* rows[kMaxBlockLanes];
  const int begin = out.begin - out.begin % S::kLanes;
  for (int lane = 0; lane < lanes.count; ++lane) rows[lane] = out.rows[lane] + begin;
  transpose_in<S>(rows, lanes.count, out.end - begin, 1.0f, out.bias[begin], ScoreMask<S>::kWidth);
}

/// The lanes' rows of a mask for the block of keys from `key` on. They lie so far apart that the
/// processor does not fetch them ahead by itself.
SDPA_INLINE void add_mask_rows(const TensorView& mask, const Lanes& lanes, std::int64_t key,
                               Ahead& ahead) {
  if (!mask.is_present() || mask.strides[3] != 1) return;
  const std::int64_t size = size_bytes(mask.dtype);
  for (int lane = 0; lane < lanes.count; ++lane)
    ahead.add(row_address(mask, lanes, lane) + key * size, kKeyBlock * size);
}

/// Surveys keys [key + begin, key + end), key a multiple of kKeyBlock: see the top of the file.
/// Additive values stay in `rows`. Without a mask tensor pass an absent view.
template <class S>
Coverage survey_rows(const TensorView& mask, const Lanes& lanes, std::int64_t key, int begin,
                     int end, ScoreMask<S>& out) {
  out.begin = begin;
  out.end = end;
  out.is_biased = false;
  out.hides = true;
  if (!mask.is_present() && lanes.max_first <= key + begin && key + end <= lanes.min_last)
    return Coverage::kFull;
  gather_visibility<S>(mask, lanes, key, out);
  int first = kKeyBlock, last = 0;
  std::uint32_t missing = 0;
  for (int word = 0; word < kKeyWords; ++word) {
    std::uint32_t any = 0, all = ~0u;
    for (int lane = 0; lane < lanes.count; ++lane) {
      any |= out.visible[word][lane];
      all &= out.visible[word][lane];
    }
    missing |= bits_between(begin, end, word) & ~all;
    if (any == 0) continue;
    if (first == kKeyBlock) first = 32 * word + std::countr_zero(any);
    last = 32 * word + 32 - std::countl_zero(any);
  }
  if (first >= last) return Coverage::kNone;
  constexpr int kPiece = S::kRows;  // whole tiles where the range allows it
  out.begin = first - first % kPiece > begin ? first - first % kPiece : begin;
  const int whole = (last + kPiece - 1) / kPiece * kPiece;
  out.end = whole < end ? whole : end;
  if (missing == 0 && !out.is_biased) return Coverage::kFull;
  return Coverage::kPartial;
}

/// What additive values of a range of keys have in common.
template <class S>
struct BiasSummary {
  typename S::Vec least = S::zero();  ///< or 0
  typename S::Words bits = S::broadcast_word(0);
};

/// bias[key][lane] = log2(e) * row of the lane[key], from key `begin` of the block on, in tiles of
/// kLanes x kLanes; zeros for lanes that stand for nothing.
template <class S, typename Element>
BiasSummary<S> transpose_mask(const Element* const* rows, int lanes, int begin, int end,
                              ScoreMask<S>& out) {
  constexpr int kLanes = S::kLanes;
  BiasSummary<S> summary;
  for (int key = begin; key < end; key += kLanes) {
    const int width = end - key < kLanes ? end - key : kLanes;
    for (int lane = 0; lane < ScoreMask<S>::kWidth; lane += kLanes) {
      typename S::Vec block[kLanes];
      unroll<kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
        if (lane + i < lanes) __builtin_prefetch(rows[lane + i] + key + kLanes);  // its next keys
        if (lane + i >= lanes)
          block[i] = S::zero();
        else if (width == kLanes)
          block[i] = S::load(rows[lane + i] + key);
        else
          block[i] = S::load_part(rows[lane + i] + key, width);
        summary.least = S::min(block[i], summary.least);
        summary.bits = S::word_or(summary.bits, S::as_words(block[i]));
      });
      S::transpose(block);
      unroll<kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
        if (i < width) S::store(out.bias[key + i] + lane, S::mul(block[i], S::broadcast(kLog2E)));
      });
    }
  }
  return summary;
}

/// Lower values may be -inf, or become so with the factor log2(e).
constexpr float kLeastPlainBias = -0x1p127f;

template <class S, typename Element>
Coverage survey_bias_of(const TensorView& mask, const Lanes& lanes, std::int64_t key, int begin,
                        int end, ScoreMask<S>& out) {
  const Element* rows[kMaxBlockLanes];
  for (int lane = 0; lane < lanes.count; ++lane) {
    rows[lane] = row_of<const Element>(mask, lanes, lane) + key;
  }
  const Element corners[] = {rows[0][begin], rows[0][end - 1], rows[lanes.count - 1][begin]};
  for (const Element corner : corners)
    if (to_float(corner) < kLeastPlainBias) return Coverage::kNone;
  const BiasSummary<S> summary = transpose_mask<S>(rows, lanes.count, begin, end, out);
  if (S::any(S::greater(S::broadcast(kLeastPlainBias), summary.least))) return Coverage::kNone;
  out.begin = begin;
  out.end = end;
  out.hides = false;
  out.is_biased = S::any(S::test(summary.bits, summary.bits));
  for (int word = 0; word < kKeyWords; ++word) {
    const std::uint32_t bits = bits_between(begin, end, word);
    for (int lane = 0; lane < ScoreMask<S>::kWidth; ++lane)
      out.visible[word][lane] = lane < lanes.count ? bits : 0;
  }
  return out.is_biased ? Coverage::kPartial : Coverage::kFull;
}

/// `survey` where additive values hide nothing: they pass through registers once, without bits and
/// comparisons (from 68 to 72 % of the peak for a mask a head, fp32 D64 L2048, one Zen 4 core).
/// Returns kNone where that is not so, which the corners of a causal mask tell at once.
template <class S>
Coverage survey_bias(const TensorView& mask, const Lanes& lanes, std::int64_t key, int begin,
                     int end, ScoreMask<S>& out) {
  const bool all_by_position = lanes.max_first <= key + begin && key + end <= lanes.min_last;
  if (!mask.is_present() || mask.strides[3] != 1 || !all_by_position || begin >= end ||
      lanes.count == 0)
    return Coverage::kNone;
  switch (mask.dtype) {
    case DType::kFloat32:
      return survey_bias_of<S, float>(mask, lanes, key, begin, end, out);
    case DType::kFloat16:
      return survey_bias_of<S, Float16>(mask, lanes, key, begin, end, out);
    case DType::kBFloat16:
      return survey_bias_of<S, BFloat16>(mask, lanes, key, begin, end, out);
    default:
      return Coverage::kNone;
  }
}

/// Surveys keys and leaves additive values transposed in `bias`.
template <class S>
Coverage survey(const TensorView& mask, const Lanes& lanes, std::int64_t key, int begin, int end,
                ScoreMask<S>& out) {
  if (const Coverage simple = survey_bias<S>(mask, lanes, key, begin, end, out);
      simple != Coverage::kNone)
    return simple;
  const Coverage coverage = survey_rows<S>(mask, lanes, key, begin, end, out);
  if (coverage == Coverage::kPartial && out.is_biased) transpose_bias<S>(lanes, out);
  return coverage;
}

/// Chooses what dropout keeps, for keys [key + begin, key + end).
template <class S>
void choose_kept(const Dropout& dropout, std::int64_t q_heads, const Lanes& lanes, std::int64_t key,
                 int begin, int end, ScoreMask<S>& out) {
  constexpr int kWidth = ScoreMask<S>::kWidth;
  alignas(64) std::uint32_t query[kWidth] = {}, head[kWidth] = {};
  for (int lane = 0; lane < lanes.count; ++lane) {
    query[lane] = static_cast<std::uint32_t>(lanes.query[lane]);
    head[lane] =
        static_cast<std::uint32_t>(lanes.batch * q_heads + lanes.head[lane] + dropout.first_head);
  }
  const auto threshold = S::broadcast_word(dropout.threshold());
  for (int lane = 0; lane < lanes.count; lane += S::kLanes)
    for (int word = begin / 32; 32 * word < end; ++word) {
      auto kept = S::broadcast_word(0);
      const int last = end < 32 * (word + 1) ? end : 32 * (word + 1);
      for (int group = begin > 32 * word ? begin & ~3 : 32 * word; group < last; group += 4) {
        const auto random =
            philox<S>(S::broadcast_word(
                          static_cast<std::uint32_t>(static_cast<std::uint64_t>(key + group) >> 2)),
                      S::load_words(query + lane), S::load_words(head + lane),
                      S::broadcast_word(dropout.offset), static_cast<std::uint32_t>(dropout.seed),
                      static_cast<std::uint32_t>(dropout.seed >> 32));
        unroll<4>([&](auto i) SDPA_INLINE_LAMBDA {
          kept = S::or_where(kept, S::not_below(random.word[i], threshold),
                             S::broadcast_word(1u << ((group + i) & 31)));
        });
      }
      S::store_words(out.kept[word] + lane, kept);
    }
}

/// What makes a score in base-2 units of a product: one rounding, since it is in every score.
SDPA_INLINE float score_factor(const Problem& problem) {
  return static_cast<float>(problem.scale * kExactLog2E);
}

/// From a maximum in base-2 units and the sum above it. Probabilities of the backward pass have its
/// error whole, so only the result is rounded (float32, 64 queries and keys, D64: dV from 1.08 to
/// 1.04 times torch's distance from double precision).
SDPA_INLINE float log_sum_exp(float row_max, float row_sum) {
  return static_cast<float>(row_max * kExactLn2 + __builtin_log(row_sum));
}

/// The soft cap in base-2 units; inactive where `cap` is 0.
struct Softcap {
  float cap = 0;
  float inverse = 0;
};

SDPA_INLINE Softcap make_softcap(const Problem& problem) {
  if (problem.softcap <= 0) return {};
  return {.cap = static_cast<float>(problem.softcap) * kLog2E,
          .inverse = static_cast<float>(1 / problem.softcap) * kLn2};
}

template <class S>
SDPA_INLINE typename S::Vec cap_score(const Softcap& softcap, typename S::Vec score) {
  return S::mul(S::broadcast(softcap.cap), tanh<S>(S::mul(score, S::broadcast(softcap.inverse))));
}

template <class S, int Rows, int Columns>
SDPA_INLINE void apply_softcap(const Softcap& softcap, Tile<S, Rows, Columns>& tile) {
  for_each(tile, [&](auto, auto, typename S::Vec& x)
                     SDPA_INLINE_LAMBDA { x = cap_score<S>(softcap, x); });
}

/// 1 - (s / cap)^2 for a score that apply_softcap gave.
template <class S>
SDPA_INLINE typename S::Vec softcap_slope(const Softcap& softcap, typename S::Vec capped) {
  const auto ratio = S::mul(capped, S::broadcast(softcap.inverse));
  return S::sub(S::broadcast(1.0f), S::mul(ratio, ratio));
}

/// Which lanes of column j see `key` of the block.
template <class S>
SDPA_INLINE typename S::Mask sees(const std::uint32_t (&words)[kKeyWords][ScoreMask<S>::kWidth],
                                  int key, int j) {
  return S::test(S::load_words(words[key >> 5] + j * S::kLanes),
                 S::broadcast_word(1u << (key & 31)));
}

/// The score of `key` of the block for the lanes of column j, with its bias, or -inf.
template <class S>
SDPA_INLINE typename S::Vec mask_score(const ScoreMask<S>& mask, int key, int j,
                                       typename S::Vec score) {
  if (mask.is_biased) score = S::add(score, S::load(mask.bias[key] + j * S::kLanes));
  if (mask.hides)
    score = S::select(sees<S>(mask.visible, key, j), score, S::broadcast(kMinusInfinity));
  return score;
}

/// `key` is the tile's first key within the block.
template <class S, int Rows, int Columns>
SDPA_INLINE void apply_mask(const ScoreMask<S>& mask, int key, Tile<S, Rows, Columns>& tile) {
  for_each(tile, [&](auto i, auto j, typename S::Vec& x)
                     SDPA_INLINE_LAMBDA { x = mask_score(mask, key + i, j, x); });
}

template <class S, int Rows, int Columns>
SDPA_INLINE void apply_dropout(const ScoreMask<S>& mask, int key, Tile<S, Rows, Columns>& tile) {
  for_each(tile, [&](auto i, auto j, typename S::Vec& x)
                     SDPA_INLINE_LAMBDA { x = S::keep(sees<S>(mask.kept, key + i, j), x); });
}

}  // namespace sdpa::cpu
