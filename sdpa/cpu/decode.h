// SPDX-License-Identifier: MIT
#pragma once

// The forward pass for few queries: bound by reading keys and values once. Lanes are head
// dimensions; a task owns all rows of one key/value head (the queries of every head that shares it,
// at most kMaxDecodeRows) and a range of its keys:
//
//   for each block of 128 keys:
//     S[row][key]  = softcap(scale q k) + mask        up to 4 rows x 4 keys in registers
//     P[row][key]  = 2^(S - row_max), row_sum += P    lanes are keys
//     O[row][d]   += P[row][key] V[key][d]            up to 4 rows x 64 dimensions in registers
//   leave (row_max, row_sum, O) behind
//
// The parts of a head are then merged in the order of their keys, by the log-sum-exp of each, with
// the sink as one more part. How keys are cut follows the shape alone (decode_plan.h), so that the
// result is the same for any number of threads. A block of 128 keys is 64 KiB of K and as much of V
// at 128 floats a key: the second level of cache holds it and the next, which is being fetched.
//
// A row that sees nothing has row_max = -inf and row_sum = 0. A block that is partly masked or
// dropped and whose sums do not come out finite is added again, only with what each row sees:
// 0 * NaN in a key that a row does not see must not reach it.

#include "sdpa/cpu/decode_merge.h"
#include "sdpa/cpu/decode_products.h"
#include "sdpa/cpu/score.h"
#include "sdpa/cpu/scratch.h"
#include "sdpa/cpu/stage.h"
#include "sdpa/threads.h"

namespace sdpa::cpu {

/// Tasks of neighbouring keys are handed out in runs, so that a thread asks for the first block of
/// the next task while it works on the last one of this (one Granite Rapids core: one head of 32k
/// keys, float32, from 1.36 to 1.26 ms; 32 heads on 8, 8k keys, from 3.25 to 2.89, bfloat16 from
/// 1.94 to 1.79). This many let threads end together.
constexpr std::int64_t kRunsPerThread = 8;

template <class S>
struct DecodeWorkspace {
  ScoreMask<S>* mask;
  float* queries;         ///< [rows][padded qk_dim] floats, or half as many words of bfloat16
  float* scores;          ///< [rows][kScoreStride], then probabilities
  BFloat16* rounded;      ///< [rows][kScoreStride]: probabilities for products of pairs
  float* lane_sums;       ///< [rows][kLanes]: row_sum before its lanes are added
  float* lane_weights;    ///< the same of weight_sum
  float* rescale;         ///< [rows]: what the block's maximum makes of O
  float* keys;            ///< [kKeyBlock][qk_dim], for elements that are not neighbours
  float* values;          ///< [kKeyBlock][v_dim]
  BFloat16* query_tiles;  ///< for products of tiles: the queries
  BFloat16* key_tiles;    ///< and keys that do not fill a tile
  DecodePartials single;  ///< the only part of a head whose keys are not split
  float* weights;         ///< [splits], to merge
  float* row_buffer;      ///< [v_dim]

  DecodeWorkspace(const Problem& problem, const DecodePlan& plan, Arena& arena) {
    mask = arena.take<ScoreMask<S>>(1);
    queries = arena.take<float>(plan.rows * padded_for_decode(problem.qk_dim));
    scores = arena.take<float>(plan.rows * kScoreStride);
    const std::int64_t rounded_rows = kHasTiles<S> ? kMaxDecodeRows : plan.rows;
    rounded = arena.take<BFloat16>(S::kHasBFloat16Dot ? rounded_rows * kScoreStride : 0);
    const std::int64_t tile = kHasTiles<S> ? kMaxDecodeRows * padded_for_decode(problem.qk_dim) : 0;
    query_tiles = arena.take<BFloat16>(tile);
    key_tiles = arena.take<BFloat16>(2 * tile);
    lane_sums = arena.take<float>(plan.rows * S::kLanes);
    lane_weights = arena.take<float>(plan.rows * S::kLanes);
    rescale = arena.take<float>(plan.rows);
    keys = arena.take<float>(kKeyBlock * problem.qk_dim);
    values = arena.take<float>(kKeyBlock * problem.v_dim);
    single = {.data = arena.take<float>(DecodePartials::floats(plan.rows, problem.v_dim)),
              .rows = plan.rows,
              .columns = problem.v_dim};
    weights = arena.take<float>(plan.splits);
    row_buffer = arena.take<float>(problem.v_dim);
  }
};

/// One range of keys of one key/value head. Element: what is read, Data or floats staged from it.
template <class S, typename Data, typename Element>
struct DecodeTask {
  using Operand = DotOperand<S, Element>;
  using Query = typename Operand::Query;
  using Products = DecodeProducts<S, Element, DecodeTask>;
  static constexpr bool kPairs = S::kHasBFloat16Dot && std::is_same_v<Element, BFloat16>;

  /// How far scores may exceed a stale maximum, in powers of two. Not at all where probabilities
  /// are rounded: the largest is 1 then, which bfloat16 holds exactly (8 x 512, D64, scale 1: the
  /// output comes from 1.00 to 0.97 times as far from double precision as torch's, dQ from 1.06 to
  /// 1.03).
  static constexpr float kStaleSlack = kPairs ? 0 : 8;

  const Problem& problem;
  const ForwardTensors& tensors;
  const DecodePlan& plan;
  DecodeWorkspace<S>& work;
  DecodePartial partial;
  bool is_followed;  ///< by a task of this thread with the head's next keys
  Lanes lanes;
  Softcap softcap{};
  float score_scale = 1;
  DecodeRows<Element> keys{}, values{};
  int begin = 0, end = 0;  ///< keys of the block that matter
  bool is_partial = false;

  void run(std::int64_t split) {
    softcap = make_softcap(problem);
    score_scale = score_factor(problem);
    start();
    std::int64_t first = plan.first_key - plan.first_key % kKeyBlock + split * plan.split_keys;
    const std::int64_t last =
        first + plan.split_keys < plan.last_key ? first + plan.split_keys : plan.last_key;
    Products products(*this);
    for (; first < last; first += kKeyBlock) visit(first, last, products);
    finish();
  }

 private:
  friend Products;
  friend VectorProducts<S, Element, DecodeTask>;

  int rows() const { return static_cast<int>(plan.rows); }

  bool hides_some() const { return is_partial || problem.dropout.is_active(); }

  std::int64_t query_stride() const { return padded_for_decode(problem.qk_dim); }

  std::int64_t out_stride() const { return padded_for_decode(problem.v_dim); }

  Query* queries() { return reinterpret_cast<Query*>(work.queries); }

  void start() {
    for (int row = 0; row < rows(); ++row) {
      const Data* from = row_of<const Data>(tensors.query, lanes, row);
      Query* to = queries() + row * query_stride();
      copy_query(from, tensors.query.strides[3], to);
      for (std::int64_t d = problem.qk_dim; d < query_stride(); ++d) to[d] = Query{};
      partial.row_max[row] = kMinusInfinity;
    }
    for (std::int64_t i = 0; i < rows() * S::kLanes; ++i)
      work.lane_sums[i] = work.lane_weights[i] = 0;
    for (std::int64_t i = 0; i < rows() * out_stride(); ++i) partial.out[i] = 0;
  }

  void copy_query(const Data* from, std::int64_t stride, Query* to) {
    if constexpr (std::is_same_v<Query, float>)
      convert_row<S>(from, stride, problem.qk_dim, to);
    else if (stride == 1)
      __builtin_memcpy(to, from, static_cast<std::size_t>(problem.qk_dim) * sizeof(Query));
    else
      for (std::int64_t d = 0; d < problem.qk_dim; ++d) to[d] = from[d * stride];
  }

  void visit(std::int64_t first, std::int64_t last, Products& products) {
    const std::int64_t low = plan.first_key - first;
    const int from = low > 0 ? static_cast<int>(low) : 0;
    const int to = last - first < kKeyBlock ? static_cast<int>(last - first) : kKeyBlock;
    Ahead::Row mask_rows[kMaxDecodeRows];
    Ahead ahead(mask_rows, kMaxDecodeRows);
    add_mask_rows(tensors.mask, lanes, first + kKeyBlock, ahead);
    ahead.ask_all();
    const Coverage coverage = survey_rows<S>(tensors.mask, lanes, first, from, to, *work.mask);
    if (coverage == Coverage::kNone) return;
    begin = work.mask->begin;
    end = work.mask->end;
    if (problem.dropout.is_active())
      choose_kept<S>(problem.dropout, problem.q_heads, lanes, first, begin, end, *work.mask);
    is_partial = coverage == Coverage::kPartial;
    const bool is_last = first + kKeyBlock >= last && !is_followed;
    stage_rows(tensors.key, first, is_last, work.keys, keys);
    stage_rows(tensors.value, first, is_last, work.values, values);
    products.score();
    for (int row = 0; row < rows(); ++row) exponentiate(row);
    products.accumulate();
  }

  void stage_rows(const TensorView& view, std::int64_t first, bool is_last, float* buffer,
                  DecodeRows<Element>& rows) {
    const Data* from = address<const Data>(view, lanes.batch, lanes.kv_head, first);
    rows.columns = view.shape[3];
    if constexpr (std::is_same_v<Data, Element>) {
      if (view.strides[3] == 1 || view.shape[3] == 1) {
        rows.data = from;
        rows.stride = view.strides[2];
        rows.ahead = is_last ? 0 : kKeyBlock * view.strides[2];
        return;
      }
    }
    if constexpr (std::is_same_v<Element, float>) {
      convert_rows<S>(from, view.strides[2], view.strides[3], begin, end, view.shape[3], buffer);
      rows.data = buffer;
      rows.stride = view.shape[3];
      rows.ahead = 0;
    }
  }

  /// Scores of one row to probabilities, in vectors of keys. Keys outside [begin, end) that share a
  /// vector with it count for nothing.
  void exponentiate(int row) {
    float* scores = work.scores + row * kScoreStride;
    const int first = begin - begin % S::kLanes;
    const int last = (end + S::kLanes - 1) / S::kLanes * S::kLanes;
    auto largest = S::broadcast(partial.row_max[row]);
    for (int key = first; key < last; key += S::kLanes) {
      const auto score = masked_score(row, key);
      S::store(scores + key, score);
      largest = S::max(score, largest);
    }
    const float base = raise_maximum(row, largest);
    float* lane_sums = work.lane_sums + row * S::kLanes;
    float* lane_weights = work.lane_weights + row * S::kLanes;
    auto sum = S::mul(S::load(lane_sums), S::broadcast(work.rescale[row]));
    [[maybe_unused]] auto weight = S::mul(S::load(lane_weights), S::broadcast(work.rescale[row]));
    for (int key = first; key < last; key += S::kLanes) {
      auto p = exp2<S, Rounding::kExact>(S::sub(S::load(scores + key), S::broadcast(base)));
      sum = S::add(sum, p);
      if constexpr (kPairs) {
        p = S::round_to_bfloat16(p);
        weight = S::add(weight, p);
      }
      if (problem.dropout.is_active()) p = S::keep(row_sees(work.mask->kept, row, key), p);
      S::store(scores + key, p);
      if constexpr (kPairs) S::store_rounded(work.rounded + row * kScoreStride + key, p);
    }
    S::store(lane_sums, sum);
    if constexpr (kPairs) S::store(lane_weights, weight);
  }

  SDPA_INLINE typename S::Vec masked_score(int row, int key) {
    auto score = S::mul(S::load(work.scores + row * kScoreStride + key), S::broadcast(score_scale));
    if (softcap.cap > 0) score = cap_score<S>(softcap, score);
    if (!is_partial && begin <= key && key + S::kLanes <= end) return score;
    const auto hidden = S::broadcast(kMinusInfinity);
    if (is_partial) {
      if (work.mask->is_biased) score = S::add(score, S::load(work.mask->rows[row] + key));
      return S::select(row_sees(work.mask->visible, row, key), score, hidden);
    }
    return S::select(sees_bits(bits_between(begin, end, key >> 5) >> (key & 31)), score, hidden);
  }

  /// One row's words against the keys [key, key + kLanes).
  SDPA_INLINE typename S::Mask row_sees(
      const std::uint32_t (&words)[kKeyWords][ScoreMask<S>::kWidth], int row, int key) const {
    return sees_bits(words[key >> 5][row] >> (key & 31));
  }

  static SDPA_INLINE typename S::Mask sees_bits(std::uint32_t bits) {
    alignas(64) static constexpr std::uint32_t kBits[kMaxLanes] = {
        1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
        1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
    return S::test(S::broadcast_word(bits), S::load_words(kBits));
  }

  /// Returns what scores of this block are taken relative to: the maximum before it as long as none
  /// exceeds that by more than the slack, which division by the sum undoes. NaN raises nothing.
  float raise_maximum(int row, typename S::Vec lanes_max) {
    const float old = partial.row_max[row];
    work.rescale[row] = 1;
    if (!S::any(S::greater(lanes_max, S::broadcast(old + kStaleSlack))))
      return old == kMinusInfinity ? 0 : old;
    alignas(64) float largest[S::kLanes];
    S::store(largest, lanes_max);
    const float top = largest_of(largest);
    partial.row_max[row] = top;
    S::store(largest, exp2<S>(S::broadcast(old - top)));
    work.rescale[row] = largest[0];
    return top;
  }

  /// One row, one key at a time, over columns [d, d + width): rare, and never fast.
  void add_seen(int row, int count, std::int64_t d, int width) {
    for (int r = row; r < row + count; ++r) {
      float* out = partial.out + r * out_stride() + d;
      for (int c = 0; c < width; ++c) out[c] *= work.rescale[r];
      for (int key = begin; key < end; ++key)
        for (int c = 0; c < width && is_seen(key, r); ++c)
          out[c] += work.scores[r * kScoreStride + key] * value_at(key, d + c);
    }
  }

  float value_at(int key, std::int64_t d) const {
    float lanes[S::kLanes];
    S::store(lanes, S::load_part(values.data + key * values.stride + d, 1));
    return lanes[0];
  }

  bool is_seen(int key, int row) const {
    const std::uint32_t bit = 1u << (key & 31);
    return (!is_partial || (work.mask->visible[key >> 5][row] & bit) != 0) &&
           (!problem.dropout.is_active() || (work.mask->kept[key >> 5][row] & bit) != 0);
  }

  /// By halves: one after the other they would wait for each other (16 rows of bfloat16 against 64
  /// keys, 32 heads, one Granite Rapids core: from 85 to 81 us).
  static SDPA_INLINE float largest_of(float (&lanes)[S::kLanes]) {
    for (int half = S::kLanes / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane)
        lanes[lane] = lanes[lane] < lanes[lane + half] ? lanes[lane + half] : lanes[lane];
    return lanes[0];
  }

  static float sum_lanes(const float* lanes) {
    float sums[S::kLanes];
    __builtin_memcpy(sums, lanes, sizeof sums);
    for (int half = S::kLanes / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    return sums[0];
  }

  void finish() {
    for (int row = 0; row < rows(); ++row) {
      partial.row_sum[row] = sum_lanes(work.lane_sums + row * S::kLanes);
      partial.weight_sum[row] =
          kPairs ? sum_lanes(work.lane_weights + row * S::kLanes) : partial.row_sum[row];
    }
  }
};

/// All tasks of a pass on elements of type Data.
template <class S, typename Data>
struct DecodePass {
  const Problem& problem;
  const ForwardTensors& tensors;
  const DecodePlan& plan;
  DecodePartials parts{};  ///< of heads whose keys are split

  void run() {
    const std::int64_t size = DecodePartials::floats(plan.rows, problem.v_dim);
    const CallMemory memory(plan.splits > 1 ? plan.tasks * size : 0);
    parts = {.data = memory.floats(), .rows = plan.rows, .columns = problem.v_dim};
    const std::int64_t run = ceil_div(plan.tasks, kRunsPerThread * thread_count());
    parallel_for(ceil_div(plan.tasks, run), [&](std::int64_t n, int) {
      const std::int64_t first = n * run, left = plan.tasks - first;
      with_workspace([&](DecodeWorkspace<S>& work) {
        run_tasks(work, first, first + (left < run ? left : run));
      });
    });
    if (plan.splits == 1) return;
    parallel_for(problem.batch * problem.kv_heads, [&](std::int64_t head, int) {
      with_workspace([&](DecodeWorkspace<S>& work) {
        merge(work, head, parts, head * plan.splits, plan.splits);
      });
    });
  }

  /// Tasks [first, last).
  void run_tasks(DecodeWorkspace<S>& work, std::int64_t first, std::int64_t last) {
    const bool is_read_in_place = has_neighbours(tensors.key) && has_neighbours(tensors.value);
    [[maybe_unused]] const ProductRegisters<S> registers;
    for (std::int64_t task = first; task < last; ++task) {
      const bool is_followed = task + 1 < last && (task + 1) % plan.splits != 0;
      if (is_read_in_place)
        run_task<Data>(work, task, is_followed);
      else
        run_task<float>(work, task, is_followed);
    }
  }

 private:
  template <typename Function>
  SDPA_INLINE void with_workspace(const Function& function) {
    Arena measure;
    DecodeWorkspace<S>(problem, plan, measure);
    Arena arena{.base = thread_scratch(measure.used)};
    DecodeWorkspace<S> work(problem, plan, arena);
    function(work);
  }

  Lanes lanes_of(std::int64_t head) const {
    return make_lanes(problem, head / problem.kv_heads, head % problem.kv_heads, plan.first_row,
                      static_cast<int>(plan.rows));
  }

  bool has_neighbours(const TensorView& view) const {
    return view.strides[3] == 1 || view.shape[3] == 1;
  }

  template <typename Element>
  void run_task(DecodeWorkspace<S>& work, std::int64_t task, bool is_followed) {
    const bool is_split = plan.splits > 1;
    DecodeTask<S, Data, Element>{.problem = problem,
                                 .tensors = tensors,
                                 .plan = plan,
                                 .work = work,
                                 .partial = is_split ? parts[task] : work.single[0],
                                 .is_followed = is_followed,
                                 .lanes = lanes_of(task / plan.splits)}
        .run(task % plan.splits);
    if (!is_split) merge(work, task, work.single, 0, 1);
  }

  void merge(DecodeWorkspace<S>& work, std::int64_t head, const DecodePartials& from,
             std::int64_t first, std::int64_t count) {
    const Lanes lanes = lanes_of(head);
    DecodeMerge<S, Data>{.problem = problem,
                         .tensors = tensors,
                         .lanes = lanes,
                         .parts = from,
                         .first = first,
                         .count = count,
                         .weights = work.weights,
                         .row_buffer = reinterpret_cast<Data*>(work.row_buffer)}
        .run();
  }
};

template <class S>
void decode(const Problem& problem, const ForwardTensors& tensors) {
  const DecodePlan plan = plan_decode(problem);
  if (problem.dtype == DType::kFloat32) return DecodePass<S, float>{problem, tensors, plan}.run();
  if (problem.dtype == DType::kFloat16) return DecodePass<S, Float16>{problem, tensors, plan}.run();
  DecodePass<S, BFloat16>{problem, tensors, plan}.run();
}

}  // namespace sdpa::cpu
