// SPDX-License-Identifier: MIT
#pragma once

// The backward pass of one part of a (batch, key head), over an instruction set S.
//
//   for each unit (up to 192 rows, backward_unit.h):
//     for each 64 keys that the unit sees:
//       stage K, V (floats that lie in whole vectors are read in place)
//       for each slab of the unit (up to 96 rows):
//         P  = exp2(mask(softcap(K Q^T)) - lse2)                    [key][row]
//         dP = keep V dO^T;  dS = P (dP - delta);  P = keep P
//         dV += P dO;  dK += dS Q;  dQ += dS^T K
//     write dQ
//
// The five products are register tiles (backward_tile.h) of floats or of bfloat16 pairs
// (backward_operands.h); P and dS exist for one slab and 64 keys only and stay in the first two
// levels of cache. Staging K and V copies 2 D floats a key and unit for 5 * 192 * D
// multiplications, and rids the tiles of strides, dtypes and tails.
//
// Queries are outer because sums over them (dK, dV) need two buffers of kv_len rows for a whole
// group of query heads, whereas keys outer needs queries, output gradients (both transposed) and
// query gradients of every head of the group.
//
// What a row does not see has P = 0 and dS = 0 exactly, whatever K, V and dO hold there. A zero
// must still not meet a NaN in the last three products: where staged rows are not finite they leave
// out zero weights one by one.
#include "sdpa/cpu/backward_ahead.h"
#include "sdpa/cpu/backward_mask.h"
#include "sdpa/cpu/backward_sums.h"
#include "sdpa/cpu/backward_unit.h"

namespace sdpa::cpu {

template <class S, typename Element>
class BackwardKernel {
 public:
  explicit BackwardKernel(const BackwardTask& task)
      : task_(task),
        s_(*task.job->problem),
        t_(*task.job->tensors),
        m_(task.job->layout),
        softcap_(make_softcap(s_)),
        unit_(task_) {}

  /// Adds dS, as it is before the soft cap, to the mask's gradient in blocks [first, last).
  void run_mask(std::int64_t first, std::int64_t last) {
    adds_to_mask_ = true;
    for (std::int64_t row = 0; row < s_.q_len * s_.group(); row += task_.job->unit_rows) {
      unit_.begin(row);
      run_blocks(first, last);
    }
  }

  /// Leaves dK and dV of the part's keys in `key_sums`, and writes dQ.
  void run() {
    sums_.begin();
    for (std::int64_t unit = task_.part->first_unit; unit < task_.part->last_unit; ++unit)
      run_unit(unit);
    sums_.zero_until(task_.part->last_block);
  }

 private:
  using V = typename S::Vec;
  using Ops = Operands<S, Element>;
  static constexpr bool kPairs = kElementsPerWord<Element> == 2;

  float* at(std::int64_t offset) const { return task_.scratch + offset; }

  void run_unit(std::int64_t unit) {
    unit_.begin(unit * task_.job->unit_rows);
    const BlockRange seen = run_blocks(task_.part->first_block, task_.part->last_block);
    if (t_.grad_query.is_present()) unit_.write_grad_query();
    if (t_.grad_sinks.is_present() && owns_rows(*task_.part, seen)) unit_.write_sink_terms();
  }

  /// Blocks [first, last) as far as the unit sees them; returns what it sees in all.
  BlockRange run_blocks(std::int64_t first, std::int64_t last) {
    const BlockRange seen = visible_blocks(s_, unit_.first_row(), unit_.rows());
    if (seen.last < last) last = seen.last;
    last_block_ = last;
    for (std::int64_t block = seen.first > first ? seen.first : first; block < last; ++block)
      run_block(block);
    return seen;
  }

  // A block of keys

  void run_block(std::int64_t block) {
    if (!adds_to_mask_) sums_.zero_until(block + 1);
    block_key_ = block * kKeyBlock;
    int first = kKeyBlock, last = 0;
    for (Slab<S>& slab : unit_.slabs()) {
      survey_slab(slab);
      if (slab.first < first) first = slab.first;
      if (slab.last > last) last = slab.last;
    }
    for (; first < last; first = step_end_) {
      step_ = first;
      step_end_ = last - first < kKeyStep ? last : first + kKeyStep;
      run_step();
    }
  }

  void survey_slab(Slab<S>& slab) const {
    const std::int64_t left = s_.kv_len - block_key_;
    const int end = static_cast<int>(left < kKeyBlock ? left : kKeyBlock);
    slab.first = kKeyBlock;
    slab.last = 0;
    for (int n = 0; n < slab.panel_count; ++n) {
      Panel<S>& panel = slab.panels[n];
      Ahead::Row rows[kMaxBlockLanes];
      Ahead ahead(rows, kMaxBlockLanes);
      add_mask_rows(t_.mask, panel.lanes, block_key_ + kKeyBlock, ahead);
      ahead.ask_all();
      panel.coverage = survey<S>(t_.mask, panel.lanes, block_key_, 0, end, panel.mask);
      if (panel.coverage == Coverage::kNone) panel.mask.begin = panel.mask.end = 0;
      if (panel.coverage == Coverage::kNone) continue;
      if (panel.mask.begin < slab.first) slab.first = panel.mask.begin;
      if (panel.mask.end > slab.last) slab.last = panel.mask.end;
      if (s_.dropout.is_active())
        choose_kept<S>(s_.dropout, s_.q_heads, panel.lanes, block_key_, panel.mask.begin,
                       panel.mask.end, panel.mask);
    }
  }

  /// Keys [step_, step_end_) of the block.
  void run_step() {
    key_ = Ops::stage_keys(key_rows(t_.key), {at(m_.key), m_.qk_stride});
    if (needs_dp()) value_ = Ops::stage_values(key_rows(t_.value), {at(m_.value), m_.v_stride});
    look_ahead();
    for (const Slab<S>& slab : unit_.slabs())
      if (slab.first < step_end_ && slab.last > step_) run_slab(slab);
  }

  /// Asks for what the next step reads and adds to; at the end of a unit, for the next one.
  void look_ahead() {
    ahead_.clear();
    const std::int64_t next = block_key_ + step_end_, end = last_block_ * kKeyBlock;
    const std::int64_t left = (end < s_.kv_len ? end : s_.kv_len) - next;
    if (left > 0) {
      ahead_.add_keys(next, left < kKeyStep ? left : kKeyStep);
      if (!adds_to_mask_) add_sums(next, left < kKeyStep ? left : kKeyStep);
    } else if (!adds_to_mask_) {
      ahead_.add_next_unit(unit_.first_row(), unit_.rows());
    }
    int calls = 0;
    for (const Slab<S>& slab : unit_.slabs())
      calls += 2 * slab.panel_count * ((step_end_ - step_ + S::kRows - 1) / S::kRows);
    ahead_.spread(calls);
  }

  void add_sums(std::int64_t key, std::int64_t keys) {
    ahead_.add_floats(sums_.grad_value(key), m_.v_stride, keys);
    ahead_.add_floats(sums_.grad_key(key), m_.qk_stride, keys);
  }

  TensorRows key_rows(const TensorView& view) const {
    return head_rows(view, task_.batch, task_.kv_head, block_key_ + step_, step_end_ - step_);
  }

  bool needs_dp() const { return needs_ds() || s_.dropout.is_active(); }

  bool needs_ds() const {
    return adds_to_mask_ || t_.grad_query.is_present() || t_.grad_key.is_present() ||
           t_.grad_sinks.is_present();
  }

  // A slab of rows against one step of keys

  void run_slab(const Slab<S>& slab) {
    slab_ = &slab;
    lanes_ = slab.lanes;
    place_weights();
    for (int n = 0; n < slab.panel_count; ++n)
      with_columns(slab.panels[n],
                   [&](auto columns) { probabilities<decltype(columns)::value>(slab.panels[n]); });
    for (int n = 0; n < slab.panel_count && needs_dp(); ++n)
      with_columns(slab.panels[n], [&](auto columns) {
        if (has_exact_delta(slab.panels[n])) {
          normalize<decltype(columns)::value>(slab.panels[n]);
          sum_delta<decltype(columns)::value>(slab.panels[n]);
        }
        score_gradients<decltype(columns)::value>(slab.panels[n]);
      });
    adds_to_mask_ ? add_to_mask() : accumulate_gradients();
  }

  /// Pairs of P lie behind P itself; those of dS by key behind those by lane.
  void place_weights() {
    auto* p = reinterpret_cast<Element*>(at(m_.p));
    auto* ds = reinterpret_cast<Element*>(at(m_.ds));
    const int by_lane = kKeyStep * lanes_ / kElementsPerWord<Element>;
    p_ = {.by_lane = kPairs ? p + kKeyStep * lanes_ : p, .by_key = nullptr, .lanes = lanes_};
    ds_ = {.by_lane = ds, .by_key = kPairs ? ds + by_lane : ds, .lanes = lanes_};
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

  /// What of the unit belongs to the panel's first lane on.
  float* unit_lanes(std::int64_t offset, const Panel<S>& panel) const {
    return at(offset) + slab_->start + panel.start;
  }

  template <int Columns>
  void probabilities(const Panel<S>& panel) {
    const int start = panel.start;
    const auto queries = unit_.queries_of(*slab_, panel);
    multiply<Columns>(panel, key_, queries, [&](auto& tile, int key) SDPA_INLINE_LAMBDA {
      ahead_.ask();
      if constexpr (kPairs) scale(tile, score_scale_);
      if (softcap_.cap != 0) {
        apply_softcap(softcap_, tile);
        store_slope(tile, at(m_.slope) + key * lanes_ + start);
      }
      if (panel.coverage == Coverage::kPartial) apply_mask(panel.mask, step_ + key, tile);
      exponentiate(panel, tile);
      if (unit_.has_nan_row() && panel.coverage == Coverage::kPartial)
        keep_visible(panel.mask, step_ + key, tile);
      store(tile, at(m_.p) + key * lanes_ + start, lanes_);
      if constexpr (kPairs) Ops::store_by_lane(tile, p_, key, start);
    });
    const std::int64_t key = block_key_ + step_, first = first_seen(panel);
    unit_.set_certain(panel, key + first, key + last_seen(panel), at(m_.p) + first * lanes_ + start,
                      lanes_);
  }

  /// Rows of keys or values against rows of the panel.
  template <int Columns, class Finish>
  SDPA_INLINE void multiply(const Panel<S>& panel, const Operand<Element>& keys,
                            const PanelRows<Element>& rows, const Finish& finish) {
    const int first = first_seen(panel), last = last_seen(panel);
    if constexpr (!kPairs)
      if (panel.is_dotted) return dot_panel<S, Columns>(keys, rows, first, last, finish);
    multiply_panel<S, Columns>(
        Product<Element>{keys.rows, keys.row_stride, rows.lanes, panel.width(),
                         words<Element>(rows.columns), rows.piece, first, last},
        finish);
  }

  /// From scores to P, as exactly as the forward pass has them.
  template <class T>
  SDPA_INLINE void exponentiate(const Panel<S>& panel, T& tile) const {
    const float* lse = unit_lanes(m_.lse, panel);
    [[maybe_unused]] const float* rest = unit_lanes(m_.lse_rest, panel);
    if (!kPairs && panel.is_dotted)
      return for_each(tile, [&](auto, auto j, V& x) SDPA_INLINE_LAMBDA {
        x = exact_probability<S>(x, S::load(lse + j * S::kLanes), S::load(rest + j * S::kLanes));
      });
    for_each(tile, [&](auto, auto j, V& x) SDPA_INLINE_LAMBDA {
      x = S::sub(x, S::load(lse + j * S::kLanes));
      if constexpr (!kPairs) x = S::sub(x, S::load(rest + j * S::kLanes));
      x = exp2<S, kPairs ? Rounding::kTo16Bits : Rounding::kFloat>(x);
    });
  }

  /// P = 0 where a lane sees nothing, once more: with a log-sum-exp of NaN, exp2(-inf - lse2) is
  /// not.
  template <class T>
  static SDPA_INLINE void keep_visible(const ScoreMask<S>& mask, int key, T& tile) {
    for_each(tile, [&](auto i, auto j, V& x)
                       SDPA_INLINE_LAMBDA { x = S::keep(sees<S>(mask.visible, key + i, j), x); });
  }

  /// dS = 0 for keys [first, last) of the step.
  template <int Columns>
  void hide(const Panel<S>& panel, int first, int last) const {
    Tile<S, 1, Columns> zero;
    clear(zero);
    for (int key = first; key < last; ++key) Ops::store_by_lane(zero, ds_, key, panel.start);
  }

  template <class T>
  SDPA_INLINE void store_slope(T& tile, float* to) {
    for_each(tile, [&](auto i, auto j, V& x) SDPA_INLINE_LAMBDA {
      S::store(to + i * lanes_ + j * S::kLanes, softcap_slope<S>(softcap_, x));
    });
  }

  template <int Columns>
  void score_gradients(const Panel<S>& panel) {
    if (adds_to_mask_) {
      hide<Columns>(panel, 0, first_seen(panel));
      hide<Columns>(panel, last_seen(panel), step_end_ - step_);
    }
    const auto grads = unit_.grad_outs_of(*slab_, panel);
    multiply<Columns>(panel, value_, grads, [&](auto& tile, int key) SDPA_INLINE_LAMBDA {
      ahead_.ask();
      finish_ds(panel, tile, key);
    });
  }

  /// Whether `sum_delta` is worth its product: 16 bits, and this step has all keys of the panel.
  bool has_exact_delta(const Panel<S>& panel) const {
    return s_.dtype != DType::kFloat32 && panel.lanes.min_first >= block_key_ &&
           panel.lanes.max_last <= block_key_ + kKeyBlock && panel.mask.begin >= step_ &&
           panel.mask.end <= step_end_;
  }

  /// Makes the probabilities of a lane sum up to 1, which those from a log-sum-exp do but nearly:
  /// by 7e-5 after a forward pass with the exponential for 16 bits. Of a row that sees one key P is
  /// 1 then and delta is dP, so that dS is 0, however many such rows add to one key.
  template <int Columns>
  void normalize(const Panel<S>& panel) {
    const int first = first_seen(panel), last = last_seen(panel), start = panel.start;
    const float* p = at(m_.p) + start;
    Tile<S, 1, Columns> factor, tile;
    for_each(factor, [&](auto, auto j, V& x) SDPA_INLINE_LAMBDA {
      x = sink_probabilities<S>(s_, t_.sinks, panel.lanes, j * S::kLanes,
                                unit_lanes(m_.lse, panel));
    });
    for (int key = first; key < last; ++key) {
      load(tile, p + key * lanes_, lanes_);
      for_each(tile, [&](auto i, auto j, V& x)
                         SDPA_INLINE_LAMBDA { factor.v[i][j] = S::add(factor.v[i][j], x); });
    }
    for_each(factor, [](auto, auto, V& x) SDPA_INLINE_LAMBDA {
      x = S::keep(is_positive<S>(x), S::div(S::broadcast(1.0f), x));
    });
    for (int key = first; key < last; ++key) {
      load(tile, p + key * lanes_, lanes_);
      for_each(tile, [&](auto i, auto j, V& x) SDPA_INLINE_LAMBDA {
        x = S::keep(is_positive<S>(x), S::mul(x, factor.v[i][j]));  // of a NaN row, too
      });
      store(tile, at(m_.p) + key * lanes_ + start, lanes_);
      if constexpr (kPairs) Ops::store_by_lane(tile, p_, key, start);
    }
  }

  /// delta from P and dP instead of from the output, which was rounded to 16 bits: rows with few
  /// keys have the largest P and would show it.
  template <int Columns>
  void sum_delta(const Panel<S>& panel) {
    float* delta = unit_lanes(m_.delta, panel);
    for (int lane = 0; lane < Columns * S::kLanes; lane += S::kLanes)
      S::store(delta + lane, S::sub(S::zero(), S::load(unit_lanes(m_.grad_lse, panel) + lane)));
    const auto grads = unit_.grad_outs_of(*slab_, panel);
    multiply<Columns>(panel, value_, grads, [&](auto& tile, int key) SDPA_INLINE_LAMBDA {
      if (s_.dropout.is_active()) drop(panel, key, tile);
      for_each(tile, [&](auto i, auto j, V& x) SDPA_INLINE_LAMBDA {
        const V p = S::load(at(m_.p) + (key + i) * lanes_ + panel.start + j * S::kLanes);
        float* to = delta + j * S::kLanes;
        S::store(to, S::add(S::load(to), S::keep(is_positive<S>(p), S::mul(p, x))));
      });
    });
  }

  /// dP of what was kept, rescaled: floats have the factor in dO^T already.
  template <class T>
  SDPA_INLINE void drop(const Panel<S>& panel, int key, T& tile) const {
    apply_dropout(panel.mask, step_ + key, tile);
    if constexpr (kPairs) scale(tile, rescale_);
  }

  /// From dP in `tile` to dS in memory; P becomes what dV takes. Where P is 0, dP may be NaN.
  template <class T>
  SDPA_INLINE void finish_ds(const Panel<S>& panel, T& tile, int key) {
    const bool drops = s_.dropout.is_active();
    if (drops) drop(panel, key, tile);
    const std::int64_t offset = key * lanes_ + panel.start;
    const float* delta = unit_lanes(m_.delta, panel);
    for_each(tile, [&](auto i, auto j, V& x) SDPA_INLINE_LAMBDA {
      const std::int64_t place = offset + i * lanes_ + j * S::kLanes;
      const V p = S::load(at(m_.p) + place);
      x = S::keep(is_positive<S>(p), S::mul(p, S::sub(x, S::load(delta + j * S::kLanes))));
      if (softcap_.cap != 0 && !adds_to_mask_) x = S::mul(x, S::load(at(m_.slope) + place));
    });
    Ops::store_both(tile, ds_, key, panel.start);
    if (!drops) return;
    for_each(tile, [&](auto i, auto j, V& x) SDPA_INLINE_LAMBDA {
      x = S::keep(sees<S>(panel.mask.kept, step_ + key + i, j),
                  S::load(at(m_.p) + offset + i * lanes_ + j * S::kLanes));
    });
    Ops::store_by_lane(tile, p_, key, panel.start);
  }

  // The gradients

  /// Neighbouring panels that see the same keys of the step: P and dS exist for no other pairs.
  struct Rectangle {
    int lane, rows;   ///< counted from the slab
    int first, last;  ///< keys, counted from the step
  };

  /// One beside the other: a band leaves a step's corners out (window of 256, fp32 D64 L4096: from
  /// 45 to 50 % of the peak, one Zen 4 core).
  void accumulate_gradients() {
    for (int n = 0; n < slab_->panel_count;) {
      const Panel<S>& panel = slab_->panels[n];
      Rectangle seen{panel.start, 0, first_seen(panel), last_seen(panel)};
      int end = panel.start;
      for (; n < slab_->panel_count && first_seen(slab_->panels[n]) == seen.first &&
             last_seen(slab_->panels[n]) == seen.last;
           ++n)
        end += slab_->panels[n].width();
      seen.rows = (end < slab_->rows ? end : slab_->rows) - seen.lane;
      if (seen.first < seen.last) accumulate_gradients(seen);
    }
  }

  void accumulate_gradients(const Rectangle& seen) {
    constexpr int kParts = kElementsPerWord<Element>;
    const std::int64_t key = block_key_ + step_ + seen.first;
    if (t_.grad_value.is_present())
      sum_over_rows(seen, p_, unit_.grad_out(), sums_.grad_value(key), m_.v_stride);
    if (t_.grad_key.is_present())
      sum_over_rows(seen, ds_, unit_.query(), sums_.grad_key(key), m_.qk_stride);
    if (t_.grad_query.is_present())
      sum({ds_.by_key + seen.first / kParts * lanes_ + seen.lane, 1, lanes_,
           key_.steps + seen.first / kParts * key_.step_stride, key_.step_stride,
           at(m_.grad_query) + (slab_->start + seen.lane) * m_.qk_stride, m_.qk_stride, seen.rows,
           words<Element>(seen.last - seen.first)},
          key_.is_finite);
  }

  /// The gradient of keys or values: weights times rows of dO or Q.
  void sum_over_rows(const Rectangle& seen, const Weights<Element>& weights,
                     const Operand<Element>& x, float* sums, std::int64_t stride) {
    constexpr int kParts = kElementsPerWord<Element>;
    const std::int64_t row_words = lanes_ / kParts, piece = row_piece(s_);
    for (std::int64_t row = 0; row < seen.rows; row += piece) {
      const std::int64_t word = (seen.lane + row) / kParts;
      const std::int64_t rows = seen.rows - row < piece ? seen.rows - row : piece;
      sum({weights.by_lane + seen.first * row_words + word, row_words, 1,
           x.steps + (slab_->start / kParts + word) * x.step_stride, x.step_stride, sums, stride,
           seen.last - seen.first, words<Element>(rows)},
          x.is_finite);
    }
  }

  void add_to_mask() {
    cpu::add_to_mask<S>({at(m_.ds), lanes_, slab_->rows, step_end_ - step_},
                        unit_.rows_of(t_.grad_mask), slab_->start, block_key_ + step_);
  }

  void sum(const Accumulation<Element>& a, bool is_finite) {
    is_finite ? accumulate<S>(a) : accumulate_visible<S>(a);
  }

  const BackwardTask task_;
  const Problem& s_;
  const BackwardTensors& t_;
  const BackwardLayout& m_;
  const Softcap softcap_;
  const float score_scale_ = score_factor(s_);
  const float rescale_ = static_cast<float>(s_.dropout.rescale());
  BackwardUnit<S, Element> unit_;
  BackwardAhead ahead_{task_};
  KeySums<S> sums_{task_};
  Operand<Element> key_, value_;
  Weights<Element> p_, ds_;
  const Slab<S>* slab_ = nullptr;
  std::int64_t block_key_ = 0, last_block_ = 0;
  int lanes_ = 0, step_ = 0, step_end_ = 0;
  bool adds_to_mask_ = false;  ///< instead of gathering dQ, dK and dV
};

}  // namespace sdpa::cpu
