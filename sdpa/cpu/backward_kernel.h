// SPDX-License-Identifier: MIT
#pragma once

// The backward pass of one part of a (batch, key head), over an instruction set S.
//
//   for each unit (up to 96 rows: queries of all heads of the group):
//     stage Q, dO as rows and transposed;  lse2 = LSE log2(e);  delta = rowsum(dO O) - dLSE
//     for each 64 keys that the unit sees:
//       stage K, V
//       P  = exp2(mask(softcap(K Q^T)) - lse2)                    [key][row]
//       dP = keep V dO^T;  dS = P (dP - delta);  P = keep P
//       dV += P dO;  dK += dS Q;  dQ += dS^T K
//     write dQ
//
// The five products are register tiles (backward_tile.h); P and dS exist for 64 keys only and
// stay in the first two levels of cache. Staging K and V copies 2 D floats a key and unit for
// 5 * 96 * D multiplications, and rids the tiles of strides, dtypes and tails.
//
// Queries are outer because sums over them (dK, dV) need two buffers of kv_len rows for a whole
// group of query heads, whereas keys outer needs queries, output gradients (both transposed) and
// query gradients of every head of the group.
//
// What a row does not see has P = 0 and dS = 0 exactly, whatever K, V and dO hold there. A zero
// must still not meet a NaN in the last three products: where staged rows are not finite they leave
// out zero weights one by one.
#include "sdpa/cpu/backward_job.h"
#include "sdpa/cpu/backward_stage.h"
#include "sdpa/cpu/backward_tile.h"
#include "sdpa/cpu/score.h"

namespace sdpa::cpu {

/// The lanes of a unit that one register tile is wide, and what masks them.
template <class S>
struct Panel {
  int start = 0;    ///< its first row within the unit
  int columns = 0;  ///< vectors
  Coverage coverage = Coverage::kNone;
  Lanes lanes;
  ScoreMask<S> mask;
};

/// Panels are as wide as a tile; four vectors go as two and two, since one alone has too few sums
/// to hide the latency of its additions.
template <class S>
constexpr int panel_columns(int vectors_left) {
  if (vectors_left == S::kColumns + 1 && S::kColumns > 2) return S::kColumns - 1;
  return vectors_left < S::kColumns ? vectors_left : S::kColumns;
}

/// The most panels a unit is cut into.
template <class S>
constexpr int kMaxPanels = kUnitRows / S::kLanes / S::kColumns + 1;

template <class S>
constexpr std::int64_t kPanelFloats = kMaxPanels<S> * sizeof(Panel<S>) / sizeof(float);

template <class S>
class BackwardKernel {
 public:
  explicit BackwardKernel(const BackwardTask& task)
      : task_(task),
        s_(*task.job->problem),
        t_(*task.job->tensors),
        m_(task.job->layout),
        softcap_(make_softcap(s_)),
        rescale_(static_cast<float>(s_.dropout.rescale())),
        panels_(reinterpret_cast<Panel<S>*>(at(m_.panels))) {}

  /// Adds dS, as it is before the soft cap, to the mask's gradient in blocks [first, last).
  void run_mask(std::int64_t first, std::int64_t last) {
    adds_to_mask_ = true;
    for (std::int64_t row = 0; row < s_.q_len * s_.group(); row += task_.job->unit_rows) {
      begin_unit(row);
      run_blocks(first, last);
    }
  }

  /// Leaves dK and dV of the part's keys in `key_sums`, and writes dQ.
  void run() {
    zeroed_ = task_.part->first_block;
    for (std::int64_t unit = task_.part->first_unit; unit < task_.part->last_unit; ++unit)
      run_unit(unit);
    zero_key_sums(task_.part->last_block);
  }

 private:
  using V = typename S::Vec;

  float* at(std::int64_t offset) const { return task_.scratch + offset; }

  // A unit of rows

  void run_unit(std::int64_t unit) {
    begin_unit(unit * task_.job->unit_rows);
    const BlockRange seen = run_blocks(task_.part->first_block, task_.part->last_block);
    if (t_.grad_query.is_present()) write_grad_query();
    if (t_.grad_sinks.is_present() && owns_rows(seen)) write_sink_terms();
  }

  /// Blocks [first, last) as far as the unit sees them; returns what it sees in all.
  BlockRange run_blocks(std::int64_t first, std::int64_t last) {
    const BlockRange seen = visible_blocks(s_, first_row_, rows_);
    is_one_block_ = seen.last - seen.first == 1;
    if (seen.last < last) last = seen.last;
    for (std::int64_t block = seen.first > first ? seen.first : first; block < last; ++block)
      run_block(block);
    return seen;
  }

  /// Of the parts that share a unit, the one with its first key speaks for its rows.
  bool owns_rows(const BlockRange& seen) const {
    const BackwardPart& part = *task_.part;
    if (seen.first == seen.last) return part.query_slot == 0;
    return part.first_block <= seen.first && seen.first < part.last_block;
  }

  void begin_unit(std::int64_t row) {
    first_row_ = row;
    const std::int64_t left = s_.q_len * s_.group() - row;
    rows_ = static_cast<int>(left < task_.job->unit_rows ? left : task_.job->unit_rows);
    lanes_ = static_cast<int>(padded_columns(rows_));
    stage_unit();
    make_panels();
  }

  TensorRows unit_rows(const TensorView& view) const {
    return group_rows(view, s_, task_.batch, task_.kv_head, first_row_, rows_);
  }

  void stage_unit() {
    const StagedRows query{at(m_.query), m_.qk_stride}, grad_out{at(m_.grad_out), m_.v_stride};
    query_is_finite_ = stage<S>(unit_rows(t_.query), lanes_, query);
    grad_out_is_finite_ = stage<S>(unit_rows(t_.grad_out), lanes_, grad_out);
    stage<S>(unit_rows(t_.out), lanes_, {at(m_.out), m_.v_stride});
    transpose_rows<S>(query, lanes_, static_cast<int>(s_.qk_dim),
                      static_cast<float>(s_.scale) * kLog2E, at(m_.query_t));
    transpose_rows<S>(grad_out, lanes_, static_cast<int>(s_.v_dim), rescale_, at(m_.grad_out_t));
    stage_row_terms();
    for (std::int64_t i = 0; i < lanes_ * m_.qk_stride; i += S::kLanes)
      S::store(at(m_.grad_query) + i, S::zero());
  }

  /// lse2 is +infinity for a row that sees nothing, and for padding: P = exp2(S - lse2) is then 0.
  void stage_row_terms() {
    const TensorRows lse = unit_rows(t_.lse);
    TensorRows grad_lse{};
    if (t_.grad_lse.is_present()) grad_lse = unit_rows(t_.grad_lse);
    has_nan_row_ = false;
    for (int row = 0; row < lanes_; ++row) {
      const float value =
          row < rows_ ? *reinterpret_cast<const float*>(lse.row[row]) : kMinusInfinity;
      const bool sees = value != kMinusInfinity;
      has_nan_row_ |= value != value;
      at(m_.lse)[row] = sees ? value * kLog2E : -kMinusInfinity;
      float& extra = at(m_.grad_lse)[row];
      extra = sees && grad_lse.rows > 0 ? *reinterpret_cast<const float*>(grad_lse.row[row]) : 0;
      at(m_.delta)[row] = sees ? output_dot(row) - extra : 0;
    }
  }

  /// rowsum(dO O). An output of exactly 0 may come of keys that were all dropped, or of none.
  float output_dot(int row) const {
    const float* grad_out = at(m_.grad_out) + row * m_.v_stride;
    const float* out = at(m_.out) + row * m_.v_stride;
    float sum = 0;
    if (!grad_out_is_finite_) {
      for (int d = 0; d < s_.v_dim; ++d)
        if (out[d] != 0) sum += grad_out[d] * out[d];
      return sum;
    }
    V sums = S::zero();
    for (std::int64_t d = 0; d < m_.v_stride; d += S::kLanes)
      sums = S::multiply_add(S::load(grad_out + d), S::load(out + d), sums);
    float lane[S::kLanes];
    S::store(lane, sums);
    for (float x : lane) sum += x;
    return sum;
  }

  void make_panels() {
    panel_count_ = 0;
    for (int start = 0; start < lanes_;) {
      Panel<S>& panel = panels_[panel_count_++];
      panel.start = start;
      panel.columns = panel_columns<S>((lanes_ - start) / S::kLanes);
      start += panel.columns * S::kLanes;
      const int count = (rows_ < start ? rows_ : start) - panel.start;
      panel.lanes = make_lanes(s_, task_.batch, task_.kv_head, first_row_ + panel.start,
                               count > 0 ? count : 0);
    }
  }

  void write_grad_query() {
    const StagedRows sums{at(m_.grad_query), m_.qk_stride};
    if (task_.query_sums == nullptr)
      return write_rows<S>(sums, static_cast<float>(s_.scale), unit_rows(t_.grad_query));
    float* to = task_.query_sums + first_row_ * m_.qk_stride;
    for (std::int64_t i = 0; i < rows_ * m_.qk_stride; i += S::kLanes)
      S::store(to + i, S::load(sums.data + i));
  }

  /// dsink = -P_sink (D - dLSE), a row.
  void write_sink_terms() {
    float* to = task_.job->sink_terms +
                (task_.batch * s_.kv_heads + task_.kv_head) * s_.q_len * s_.group() + first_row_;
    for (int n = 0; n < panel_count_; ++n)
      for (int lane = 0; lane < panels_[n].lanes.count; ++lane) {
        const int row = panels_[n].start + lane;
        float p[S::kLanes];
        S::store(p, exp2<S>(S::broadcast(task_.job->sinks[panels_[n].lanes.head[lane]] -
                                         at(m_.lse)[row])));
        to[row] = p[0] == 0 ? 0 : -p[0] * at(m_.delta)[row];
      }
  }

  // A block of keys

  void run_block(std::int64_t block) {
    if (!adds_to_mask_) zero_key_sums(block + 1);
    block_key_ = block * kKeyBlock;
    const std::int64_t left = s_.kv_len - block_key_;
    const int end = static_cast<int>(left < kKeyBlock ? left : kKeyBlock);
    int first = kKeyBlock, last = 0;
    for (int n = 0; n < panel_count_; ++n) {
      Panel<S>& panel = panels_[n];
      panel.coverage = survey<S>(t_.mask, panel.lanes, block_key_, 0, end, panel.mask);
      if (panel.coverage == Coverage::kNone) panel.mask.begin = panel.mask.end = 0;
      if (panel.coverage == Coverage::kNone) continue;
      if (panel.mask.begin < first) first = panel.mask.begin;
      if (panel.mask.end > last) last = panel.mask.end;
      if (s_.dropout.is_active())
        choose_kept<S>(s_.dropout, s_.q_heads, panel.lanes, block_key_, panel.mask.begin,
                       panel.mask.end, panel.mask);
    }
    has_exact_delta_ = s_.dtype != DType::kFloat32 && is_one_block_ && last - first <= kKeyStep;
    for (; first < last; first = step_end_) {
      step_ = first;
      step_end_ = last - first < kKeyStep ? last : first + kKeyStep;
      run_step();
    }
  }

  /// Keys [step_, step_end_) of the block.
  void run_step() {
    key_is_finite_ = stage_keys(t_.key, {at(m_.key), m_.qk_stride});
    for (int n = 0; n < panel_count_; ++n)
      with_columns(panels_[n],
                   [&](auto columns) { probabilities<decltype(columns)::value>(panels_[n]); });
    if (needs_ds() || s_.dropout.is_active()) {
      stage_keys(t_.value, {at(m_.value), m_.v_stride});
      for (int n = 0; n < panel_count_; ++n)
        with_columns(panels_[n], [&](auto columns) {
          if (has_exact_delta_) sum_delta<decltype(columns)::value>(panels_[n]);
          score_gradients<decltype(columns)::value>(panels_[n]);
        });
    }
    adds_to_mask_ ? add_to_mask() : accumulate_gradients();
  }

  bool needs_ds() const {
    return adds_to_mask_ || t_.grad_query.is_present() || t_.grad_key.is_present() ||
           t_.grad_sinks.is_present();
  }

  bool stage_keys(const TensorView& view, const StagedRows& to) const {
    const int count = step_end_ - step_;
    return stage<S>(head_rows(view, task_.batch, task_.kv_head, block_key_ + step_, count), count,
                    to);
  }

  template <class Function>
  SDPA_INLINE void with_columns(const Panel<S>& panel, const Function& function) {
    unroll<S::kColumns>([&](auto n) SDPA_INLINE_LAMBDA {
      if (panel.columns == n + 1) function(std::integral_constant<int, n + 1>{});
    });
  }

  /// The keys of the step that the panel sees, counted from the step.
  int first_seen(const Panel<S>& panel) const {
    return panel.mask.begin > step_
               ? (panel.mask.begin < step_end_ ? panel.mask.begin - step_ : step_end_ - step_)
               : 0;
  }

  int last_seen(const Panel<S>& panel) const {
    const int last = panel.mask.end < step_end_ ? panel.mask.end - step_ : step_end_ - step_;
    return last > first_seen(panel) ? last : first_seen(panel);
  }

  template <int Columns>
  void probabilities(const Panel<S>& panel) {
    const int first = first_seen(panel), last = last_seen(panel), start = panel.start;
    fill_zero<Columns>(at(m_.p) + start, 0, first);
    fill_zero<Columns>(at(m_.p) + start, last, step_end_ - step_);
    const float* lse = at(m_.lse) + start;
    multiply_panel<S, Columns>({at(m_.key), m_.qk_stride, at(m_.query_t) + start, lanes_,
                                static_cast<int>(s_.qk_dim), first, last},
                               [&](auto& tile, int key) SDPA_INLINE_LAMBDA {
                                 if (softcap_.cap != 0) {
                                   apply_softcap(softcap_, tile);
                                   store_slope(tile, at(m_.slope) + key * lanes_ + start);
                                 }
                                 if (panel.coverage == Coverage::kPartial)
                                   apply_mask(panel.mask, step_ + key, tile);
                                 for_each(tile, [&](auto, auto j, V& x) SDPA_INLINE_LAMBDA {
                                   x = exp2<S>(S::sub(x, S::load(lse + j * S::kLanes)));
                                 });
                                 if (has_nan_row_ && panel.coverage == Coverage::kPartial)
                                   keep_visible(panel.mask, step_ + key, tile);
                                 store(tile, at(m_.p) + key * lanes_ + start, lanes_);
                               });
  }

  /// P = 0 where a lane sees nothing, once more: with a log-sum-exp of NaN, exp2(-inf - lse2) is
  /// not.
  template <class T>
  static SDPA_INLINE void keep_visible(const ScoreMask<S>& mask, int key, T& tile) {
    for_each(tile, [&](auto i, auto j, V& x)
                       SDPA_INLINE_LAMBDA { x = S::keep(sees<S>(mask.visible, key + i, j), x); });
  }

  template <int Columns>
  void fill_zero(float* to, int first, int last) const {
    for (int key = first; key < last; ++key)
      for (int j = 0; j < Columns; ++j) S::store(to + key * lanes_ + j * S::kLanes, S::zero());
  }

  template <int Rows, int Columns, class Function>
  static SDPA_INLINE void for_each(Tile<S, Rows, Columns>& tile, const Function& function) {
    unroll<Rows>([&](auto i) SDPA_INLINE_LAMBDA {
      unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA { function(i, j, tile.v[i][j]); });
    });
  }

  template <class T>
  SDPA_INLINE void store_slope(T& tile, float* to) {
    for_each(tile, [&](auto i, auto j, V& x) SDPA_INLINE_LAMBDA {
      S::store(to + i * lanes_ + j * S::kLanes, softcap_slope<S>(softcap_, x));
    });
  }

  template <int Columns>
  void score_gradients(const Panel<S>& panel) {
    const int first = first_seen(panel), last = last_seen(panel), start = panel.start;
    fill_zero<Columns>(at(m_.ds) + start, 0, first);
    fill_zero<Columns>(at(m_.ds) + start, last, step_end_ - step_);
    multiply_panel<S, Columns>(value_product(panel), [&](auto& tile, int key) SDPA_INLINE_LAMBDA {
      finish_ds(panel, tile, key, key * lanes_ + start);
    });
  }

  /// delta from P and dP instead of from the output, which was rounded to 16 bits: rows with few
  /// keys have the largest P and would show it. Costs nothing but where all keys fit one step.
  template <int Columns>
  void sum_delta(const Panel<S>& panel) {
    float* delta = at(m_.delta) + panel.start;
    for (int lane = 0; lane < Columns * S::kLanes; lane += S::kLanes)
      S::store(delta + lane, S::sub(S::zero(), S::load(at(m_.grad_lse) + panel.start + lane)));
    multiply_panel<S, Columns>(value_product(panel), [&](auto& tile, int key) SDPA_INLINE_LAMBDA {
      if (s_.dropout.is_active()) apply_dropout(panel.mask, step_ + key, tile);
      for_each(tile, [&](auto i, auto j, V& x) SDPA_INLINE_LAMBDA {
        const V p = S::load(at(m_.p) + (key + i) * lanes_ + panel.start + j * S::kLanes);
        float* to = delta + j * S::kLanes;
        S::store(to, S::add(S::load(to), S::keep(is_positive(p), S::mul(p, x))));
      });
    });
  }

  Product value_product(const Panel<S>& panel) const {
    return {at(m_.value),
            m_.v_stride,
            at(m_.grad_out_t) + panel.start,
            lanes_,
            static_cast<int>(s_.v_dim),
            first_seen(panel),
            last_seen(panel)};
  }

  /// Or NaN. A probability that is not 0 is at least 2^-126.
  static SDPA_INLINE typename S::Mask is_positive(V p) {
    return S::not_less(p, S::broadcast(0x1p-126f));
  }

  /// From dP in `tile` to dS in memory; P becomes what dV takes. Where P is 0, dP may be NaN.
  template <class T>
  SDPA_INLINE void finish_ds(const Panel<S>& panel, T& tile, int key, std::int64_t offset) {
    const bool drops = s_.dropout.is_active();
    if (drops) apply_dropout(panel.mask, step_ + key, tile);
    for_each(tile, [&](auto i, auto j, V& x) SDPA_INLINE_LAMBDA {
      const std::int64_t place = offset + i * lanes_ + j * S::kLanes;
      const V p = S::load(at(m_.p) + place);
      const V delta = S::load(at(m_.delta) + panel.start + j * S::kLanes);
      x = S::keep(is_positive(p), S::mul(p, S::sub(x, delta)));
      if (softcap_.cap != 0 && !adds_to_mask_) x = S::mul(x, S::load(at(m_.slope) + place));
      S::store(at(m_.ds) + place, x);
      if (drops)
        S::store(at(m_.p) + place, S::keep(sees<S>(panel.mask.kept, step_ + key + i, j), p));
    });
  }

  // The gradients

  void accumulate_gradients() {
    const int keys = step_end_ - step_;
    const std::int64_t row = block_key_ + step_ - task_.part->first_block * kKeyBlock;
    if (t_.grad_value.is_present())
      sum({at(m_.p), lanes_, 1, at(m_.grad_out), grad_value_sums(row), m_.v_stride, keys, rows_},
          grad_out_is_finite_);
    if (t_.grad_key.is_present())
      sum({at(m_.ds), lanes_, 1, at(m_.query), grad_key_sums(row), m_.qk_stride, keys, rows_},
          query_is_finite_);
    if (t_.grad_query.is_present())
      sum({at(m_.ds), 1, lanes_, at(m_.key), at(m_.grad_query), m_.qk_stride, rows_, keys},
          key_is_finite_);
  }

  /// Rows of the mask may be one row of memory: they are added one after the other.
  void add_to_mask() {
    const TensorRows mask = unit_rows(t_.grad_mask);
    for (int lane = 0; lane < rows_; lane += S::kLanes)
      for (int key = 0; key < step_end_ - step_; key += S::kLanes) {
        const int keys = step_end_ - step_ - key < S::kLanes ? step_end_ - step_ - key : S::kLanes;
        V block[S::kLanes];
        unroll<S::kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
          block[i] = i < keys ? S::load(at(m_.ds) + (key + i) * lanes_ + lane) : S::zero();
        });
        S::transpose(block);
        unroll<S::kLanes>([&](auto i) SDPA_INLINE_LAMBDA {
          if (lane + i < rows_)
            add_to_mask_row(reinterpret_cast<float*>(mask.row[lane + i]) +
                                (block_key_ + step_ + key) * mask.step,
                            mask.step, keys, block[i]);
        });
      }
  }

  static void add_to_mask_row(float* to, std::int64_t step, int keys, V ds) {
    if (step == 1) return S::store_part(to, S::add(S::load_part(to, keys), ds), keys);
    float lane[S::kLanes];
    S::store(lane, ds);
    for (int key = 0; key < keys; ++key) to[key * step] += lane[key];
  }

  void sum(const Accumulation& a, bool is_finite) {
    is_finite ? accumulate<S>(a) : accumulate_visible<S>(a);
  }

  float* grad_key_sums(std::int64_t row) const { return task_.key_sums + row * m_.qk_stride; }

  float* grad_value_sums(std::int64_t row) const {
    const BackwardPart& part = *task_.part;
    return task_.key_sums + (part.last_block - part.first_block) * kKeyBlock * m_.qk_stride +
           row * m_.v_stride;
  }

  /// Sums are zeroed just before their first use: they are about to be in cache anyway.
  void zero_key_sums(std::int64_t last_block) {
    for (; zeroed_ < last_block; ++zeroed_) {
      const std::int64_t row = (zeroed_ - task_.part->first_block) * kKeyBlock;
      for (std::int64_t i = 0; i < kKeyBlock * m_.qk_stride; i += S::kLanes)
        S::store(grad_key_sums(row) + i, S::zero());
      for (std::int64_t i = 0; i < kKeyBlock * m_.v_stride; i += S::kLanes)
        S::store(grad_value_sums(row) + i, S::zero());
    }
  }

  const BackwardTask task_;
  const Problem& s_;
  const BackwardTensors& t_;
  const BackwardLayout& m_;
  const Softcap softcap_;
  const float rescale_;
  Panel<S>* panels_;
  int panel_count_ = 0;
  std::int64_t first_row_ = 0, block_key_ = 0;
  std::int64_t zeroed_ = 0;  ///< key blocks before this one have their sums zeroed
  int rows_ = 0, lanes_ = 0, step_ = 0, step_end_ = 0;
  bool adds_to_mask_ = false;  ///< instead of gathering dQ, dK and dV
  bool is_one_block_ = false, has_exact_delta_ = false;
  bool has_nan_row_ = false;
  bool query_is_finite_ = true, grad_out_is_finite_ = true, key_is_finite_ = true;
};

template <class S>
void run_part(const BackwardTask& task) {
  BackwardKernel<S>(task).run();
}

template <class S>
void add_mask_gradient(const BackwardMaskTask& task) {
  for (std::int64_t batch = task.first_batch; batch < task.last_batch; ++batch)
    for (std::int64_t head = task.first_head; head < task.last_head; ++head)
      BackwardKernel<S>({task.job, nullptr, batch, head, nullptr, nullptr, task.scratch})
          .run_mask(task.first_block, task.last_block);
}

}  // namespace sdpa::cpu
