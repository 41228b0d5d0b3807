// SPDX-License-Identifier: MIT
#pragma once

// The forward pass. Lanes are queries; a task owns a few blocks of lanes of one key/value head and
// walks the keys they see in blocks of 128:
//
//   for each block of keys:  stage K and V (in place for float32)
//     for each block of lanes, for each range of keys in it:
//       S[key][lane] = softcap(K Q^T) + mask        8 keys x 48 lanes in registers, K by broadcast
//       P[key][lane] = 2^(S - row_max[lane])        beside the next 8 keys; row_sum += P
//       O[d][lane]  += V[key][d] P[key][lane]       8 dims x 48 lanes in registers, V by broadcast
//   out = O / row_sum, transposed back
//
// K and V are never transposed or packed, maxima and sums are one vector operation a key, and heads
// of a group lie side by side in the lanes. Each micro-tile does rows * columns multiply-adds for
// rows broadcasts and columns loads.
//
// What follows a score's product, up to the exponential, is done between the steps of the next
// keys' products (beside.h): 2 to 3 % faster, 4 % with an additive mask (D 64, one Zen 4 core).
//
// The maximum may be stale: exponentials take the maximum of the keys before, as long as no lane's
// sum up to more than 2^12 over the range, which the final division undoes exactly. Where one's do
// (rarely: the first tile of keys gives a maximum to begin with), the range is computed again in
// three steps: all scores, the new maximum, then the exponentials, with O and row_sum rescaled.
// Asking the sums, which are there anyway, saves comparing each score with the maximum, 1 to 2 %.
// Where probabilities are rounded, ranges take these steps until they have summed up to some more.
//
// Where there are few blocks and many keys, the keys are split over tasks (plan.cpp), and what the
// parts leave behind is merged in their order (forward_merge.h).
//
// Where whole blocks leave no more than eight rows of a head, these go through decode.h: a block of
// lanes for them would cost as much as one for sixteen.
//
// A row that sees nothing keeps row_max = -inf and row_sum = 0; its output is 0 and its LSE -inf. A
// sink is the state that a row starts from. A value that is not finite would spoil the rows that do
// not see it by 0 * NaN; a range that is partly masked or dropped and holds one goes through
// accumulate_seen, which multiplies only what is seen.

#include "sdpa/cpu/decode.h"
#include "sdpa/cpu/forward_merge.h"
#include "sdpa/cpu/forward_step.h"
#include "sdpa/cpu/plan.h"
#include "sdpa/cpu/scratch.h"
#include "sdpa/threads.h"

namespace sdpa::cpu {

/// The most rows that a task asks for at a time: those of a mask, or those of a short head.
SDPA_INLINE int rows_ahead(const Problem& problem, const ForwardPlan& plan) {
  const std::int64_t head = 2 * problem.q_len * problem.group() + 2 * problem.kv_len;
  return kMaxBlockLanes + (plan.has_short_heads ? static_cast<int>(head) : 0);
}

/// A task's memory, all of it from the thread's scratch: nothing grows with q_len or kv_len.
template <class S, typename Data, typename Element>
struct ForwardWorkspace {
  static constexpr int kWidth = S::kLanes * S::kColumns;

  LaneBlock<S, Element>* blocks;
  ScoreMask<S>* mask;
  float* scores;
  float* waiting;
  Element* probabilities;
  StagingBuffers<Element> staging;
  Data* rows;  ///< [kWidth][larger head dim]: rows on their way in or out
  Ahead::Row* ahead;
  DecodeWorkspace<S> last_rows;

  ForwardWorkspace(const Problem& problem, const ForwardPlan& plan, Arena& arena)
      : last_rows(problem, plan.last_rows, arena) {
    constexpr int kWords = kElementsPerWord<Element>;
    const std::int64_t width = problem.qk_dim > problem.v_dim ? problem.qk_dim : problem.v_dim;
    blocks = arena.take<LaneBlock<S, Element>>(plan.blocks_per_task);
    for (int b = 0; b < plan.blocks_per_task; ++b) {
      auto* queries = arena.take<Element>(words<Element>(problem.qk_dim) * kWidth);
      auto* out = arena.take<float>(problem.v_dim * kWidth);
      if (arena.base == nullptr) continue;
      blocks[b].queries = queries;
      blocks[b].out = out;
    }
    mask = arena.take<ScoreMask<S>>(1);
    probabilities = arena.take<Element>(kKeyBlock / kWords * kWidth);
    scores = arena.take<float>(kKeyBlock * kWidth);
    waiting = arena.take<float>(S::kRows * kWidth);
    staging.keys = arena.take<Element>(kKeyBlock * words<Element>(problem.qk_dim));
    staging.values = arena.take<Element>(kKeyBlock / kWords * problem.v_dim);
    rows = arena.take<Data>(kWidth * width);
    ahead = arena.take<Ahead::Row>(rows_ahead(problem, plan));
  }
};

template <class S, typename Data, typename Element>
struct ForwardTask {
  static constexpr int kWidth = S::kLanes * S::kColumns;

  const Problem& problem;
  const ForwardTensors& tensors;
  const ForwardPlan& plan;
  ForwardWorkspace<S, Data, Element>& work;
  ForwardContext<S, Element> context;
  int blocks = 0;

  /// `stride`: the task after this one that the same thread is likely to run.
  void run(std::int64_t task, int stride) {
    start(task);
    if (plan.has_short_heads) look_ahead(task, stride);
    visit(0, problem.kv_len);
    for (int b = 0; b < blocks; ++b) finish(work.blocks[b]);
    if (plan.last_rows.rows == 0 || task % plan.chunks_per_head != 0) return;
    const std::int64_t head = task / plan.chunks_per_head;
    DecodePass<S, Data>{problem, tensors, plan.last_rows}.run_tasks(work.last_rows, head, head + 1);
  }

  /// One part of the keys of a chunk, which is one block then.
  void run_part(std::int64_t task, const ForwardParts<S, Element>& parts) {
    const std::int64_t split = task % plan.splits;
    start(task / plan.splits);
    if (split > 0) forget_sinks(work.blocks[0]);
    const std::int64_t first =
        plan.first_key - plan.first_key % kKeyBlock + split * plan.split_keys;
    visit(first, first + plan.split_keys);
    parts.save(work.blocks[0], task);
  }

  void merge(std::int64_t chunk, const ForwardParts<S, Element>& parts) {
    find_lanes(chunk);
    parts.merge(chunk * plan.splits, plan.splits, work.blocks[0]);
    finish(work.blocks[0]);
  }

 private:
  /// Keys from `low` to `high`, as far as some lane sees them.
  void visit(std::int64_t low, std::int64_t high) {
    std::int64_t first = problem.kv_len, last = 0;
    for (int b = 0; b < blocks; ++b) {
      const Lanes& lanes = work.blocks[b].lanes;
      first = lanes.min_first < first ? lanes.min_first : first;
      last = lanes.max_last > last ? lanes.max_last : last;
    }
    first = low > first ? low : first;
    last = high < last ? high : last;
    for (std::int64_t key = first - first % kKeyBlock; key < last; key += kKeyBlock)
      visit_keys(key, bounded(first - key) & ~7, bounded(last - key));
  }

  static SDPA_INLINE int bounded(std::int64_t key) {
    return key < 0 ? 0 : key > kKeyBlock ? kKeyBlock : static_cast<int>(key);
  }

  /// A short head is over before the processor has learnt to fetch its rows: what the next one
  /// reads and this one writes is asked for (one Zen 4 core: from 66 to 73 % of the peak for 128
  /// rows of 64, from 35 to 42 % for 49 of 32).
  void look_ahead(std::int64_t head, int stride) {
    add_head<Data>(tensors.out, head, problem.group(), problem.q_len, true);
    if (head + stride >= plan.tasks) return;
    add_head<Data>(tensors.key, head + stride, 1, problem.kv_len, false);
    add_head<Data>(tensors.value, head + stride, 1, problem.kv_len, false);
    add_head<Data>(tensors.query, head + stride, problem.group(), problem.q_len, false);
  }

  /// `index` counts key/value heads over the batch.
  template <typename From>
  void add_head(const TensorView& view, std::int64_t index, std::int64_t group, std::int64_t rows,
                bool is_written) {
    if (view.strides[3] != 1) return;
    const std::int64_t batch = index / problem.kv_heads, head = index % problem.kv_heads * group;
    for (std::int64_t member = 0; member < group; ++member)
      for (std::int64_t row = 0; row < rows; ++row)
        context.ahead.add(address<const From>(view, batch, head + member, row),
                          view.shape[3] * static_cast<std::int64_t>(sizeof(From)), is_written);
  }

  /// Later rows first: under causality they see the most keys, and the long tasks should not be the
  /// last ones.
  void find_lanes(std::int64_t index) {
    const std::int64_t head = index / plan.chunks_per_head;
    const std::int64_t chunk = plan.chunks_per_head - 1 - index % plan.chunks_per_head;
    for (; blocks < plan.blocks_per_task; ++blocks) {
      const std::int64_t row = (chunk * plan.blocks_per_task + blocks) * kWidth;
      if (row >= plan.rows) break;
      const int count = plan.rows - row < kWidth ? static_cast<int>(plan.rows - row) : kWidth;
      work.blocks[blocks].lanes =
          make_lanes(problem, head / problem.kv_heads, head % problem.kv_heads, row, count);
    }
  }

  void start(std::int64_t chunk) {
    find_lanes(chunk);
    for (int b = 0; b < blocks; ++b) start_block(work.blocks[b]);
  }

  void start_block(LaneBlock<S, Element>& block) {
    const Data* rows[kWidth];
    find_rows(tensors.query, block.lanes, work.rows, rows);
    stage_queries<S>(rows, block.lanes.count, problem.qk_dim, score_factor(problem), block.queries);
    block.is_started = false;
    for (int lane = 0; lane < kWidth; ++lane) {
      const float sink = problem.has_sinks && lane < block.lanes.count
                             ? sink_logit(tensors.sinks, block.lanes.head[lane])
                             : kMinusInfinity;
      block.row_max[lane] = sink;
      block.base[lane] = sink == kMinusInfinity ? kLowest : sink;
      for (auto& sum : block.row_sum)
        sum[lane] = sink == kMinusInfinity ? 0 : 1 + (sink - sink);  // NaN stays NaN
    }
  }

  /// A row's sink counts once, with the first part.
  void forget_sinks(LaneBlock<S, Element>& block) {
    for (int lane = 0; lane < kWidth; ++lane) {
      block.row_max[lane] = kMinusInfinity;
      block.base[lane] = kLowest;
      for (auto& sum : block.row_sum) sum[lane] = 0;
    }
  }

  void visit_keys(std::int64_t key, int begin, int end) {
    context.keys = stage<S, Data>(tensors.key, tensors.value, work.blocks[0].lanes, key, begin, end,
                                  work.staging);
    for (int b = 0; b < blocks; ++b) {
      const Lanes& lanes = work.blocks[b].lanes;
      const int first = bounded(lanes.min_first - key) & ~7;
      const int last = up_to_eight(bounded(lanes.max_last - key), end);
      if (first < last) visit_block(work.blocks[b], first, last);
    }
  }

  static SDPA_INLINE int up_to_eight(int key, int end) {
    const int whole = (key + 7) & ~7;
    return whole < end ? whole : end;
  }

  /// Cuts the keys into those that only some lanes see by position and those that all see.
  void visit_block(LaneBlock<S, Element>& block, int first, int last) {
    const std::int64_t key = context.keys.first;
    int all_first = up_to_eight(bounded(block.lanes.max_first - key), last);
    int all_last = bounded(block.lanes.min_last - key);
    all_last = all_last >= last ? last : all_last & ~7;
    if (tensors.mask.is_present() || all_first >= all_last) return visit_range(block, first, last);
    if (all_first < first) all_first = first;
    if (first < all_first) visit_range(block, first, all_first);
    visit_range(block, all_first, all_last);
    if (all_last < last) visit_range(block, all_last, last);
  }

  void visit_range(LaneBlock<S, Element>& block, int begin, int end) {
    const Coverage coverage =
        survey<S>(tensors.mask, block.lanes, context.keys.first, begin, end, *context.mask);
    if (coverage == Coverage::kNone) return;
    begin = context.mask->begin;
    end = context.mask->end;
    if (tensors.mask.is_present()) {
      context.ahead.clear();
      add_mask_rows(tensors.mask, block.lanes, context.keys.first + kKeyBlock, context.ahead);
    }
    if (context.is_dropping)
      choose_kept<S>(problem.dropout, problem.q_heads, block.lanes, context.keys.first, begin, end,
                     *context.mask);
    if (context.softcap.cap > 0 || context.is_dropping)
      step<Rules::kAll, S::kColumns>(block, coverage, begin, end);
    else if (coverage == Coverage::kPartial)
      step<Rules::kMask, S::kColumns>(block, coverage, begin, end);
    else
      step<Rules::kPlain, S::kColumns>(block, coverage, begin, end);
  }

  /// As few columns as the lanes fill.
  template <Rules kRules, int Columns>
  void step(LaneBlock<S, Element>& block, Coverage coverage, int begin, int end) {
    if constexpr (Columns > 1)
      if (block.lanes.count <= (Columns - 1) * S::kLanes)
        return step<kRules, Columns - 1>(block, coverage, begin, end);
    ForwardStep<S, Element, Columns, kRules>{context, block, coverage, begin, end}.run();
  }

  void finish(LaneBlock<S, Element>& block) {
    alignas(64) float factor[kWidth];
    const auto kept = S::broadcast(static_cast<float>(problem.dropout.rescale()));
    const auto least = S::broadcast(0x1p-149f);
    for (int lane = 0; lane < kWidth; lane += S::kLanes) {
      const auto sum = block.divisor(lane);
      S::store(factor + lane, S::keep(S::not_less(sum, least), S::div(kept, sum)));
    }
    for (std::int64_t i = 0; !block.is_started && i < problem.v_dim * kWidth; ++i) block.out[i] = 0;
    store_out(block, factor);
    if (tensors.lse.is_present()) store_lse(block);
  }

  void store_out(LaneBlock<S, Element>& block, const float* factor) {
    const auto& out = tensors.out;
    const bool is_direct = out.strides[3] == 1 || problem.v_dim == 1;
    Data* rows[kWidth];
    for (int lane = 0; lane < block.lanes.count; ++lane)
      rows[lane] =
          is_direct ? row_of<Data>(out, block.lanes, lane) : work.rows + lane * problem.v_dim;
    transpose_out<S>(block.out, kWidth, factor, block.lanes.count, problem.v_dim, rows);
    for (int lane = 0; lane < block.lanes.count && !is_direct; ++lane) {
      Data* to = row_of<Data>(out, block.lanes, lane);
      for (std::int64_t d = 0; d < problem.v_dim; ++d) to[d * out.strides[3]] = rows[lane][d];
    }
  }

  void store_lse(const LaneBlock<S, Element>& block) {
    for (int lane = 0; lane < block.lanes.count; ++lane)
      *row_of<float>(tensors.lse, block.lanes, lane) =
          log_sum_exp(block.row_max[lane], block.row_sum[0][lane]);
  }
};

/// All tasks of a pass on elements of type Data, with kernels on Element.
template <class S, typename Data, typename Element>
struct ForwardPass {
  using Task = ForwardTask<S, Data, Element>;

  const Problem& problem;
  const ForwardTensors& tensors;
  const ForwardPlan& plan;

  void run() const {
    const int threads = thread_count();
    if (plan.splits > 1) return run_split();
    parallel_for(plan.tasks, [&](std::int64_t index, int) {
      with_task([&](Task& task) SDPA_INLINE_LAMBDA { task.run(index, threads); });
    });
  }

 private:
  void run_split() const {
    const CallMemory memory(plan.tasks * ForwardParts<S, Element>::floats(problem.v_dim));
    const ForwardParts<S, Element> parts{.data = memory.floats(), .v_dim = problem.v_dim};
    parallel_for(plan.tasks, [&](std::int64_t index, int) {
      with_task([&](Task& task) SDPA_INLINE_LAMBDA { task.run_part(index, parts); });
    });
    parallel_for(plan.tasks / plan.splits, [&](std::int64_t chunk, int) {
      with_task([&](Task& task) SDPA_INLINE_LAMBDA { task.merge(chunk, parts); });
    });
  }

  template <typename Function>
  SDPA_INLINE void with_task(const Function& function) const {
    Arena measure;
    ForwardWorkspace<S, Data, Element>(problem, plan, measure);
    Arena arena{.base = thread_scratch(measure.used)};
    ForwardWorkspace<S, Data, Element> work(problem, plan, arena);
    Task task{.problem = problem,
              .tensors = tensors,
              .plan = plan,
              .work = work,
              .context = {.problem = problem,
                          .tensors = tensors,
                          .softcap = make_softcap(problem),
                          .is_dropping = problem.dropout.is_active(),
                          .score_scale = score_factor(problem),
                          .keys = {},
                          .mask = work.mask,
                          .scores = work.scores,
                          .waiting = work.waiting,
                          .probabilities = work.probabilities,
                          .ahead = Ahead(work.ahead, rows_ahead(problem, plan))}};
    function(task);
  }
};

template <class S>
KernelShape shape_of() {
  return {.block_lanes = S::kLanes * S::kColumns, .has_bfloat16_dot = S::kHasBFloat16Dot};
}

template <class S>
void forward(const Problem& problem, const ForwardTensors& tensors) {
  if (is_decode(problem, shape_of<S>())) return decode<S>(problem, tensors);
  const ForwardPlan plan = plan_forward(problem, shape_of<S>());
  if (problem.dtype == DType::kFloat32)
    return ForwardPass<S, float, float>{problem, tensors, plan}.run();
  if (problem.dtype == DType::kFloat16)
    return ForwardPass<S, Float16, float>{problem, tensors, plan}.run();
  if constexpr (S::kHasBFloat16Dot)
    ForwardPass<S, BFloat16, BFloat16Pair>{problem, tensors, plan}.run();
  else
    ForwardPass<S, BFloat16, float>{problem, tensors, plan}.run();
}

}  // namespace sdpa::cpu
