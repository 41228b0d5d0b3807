// SPDX-License-Identifier: MIT
#pragma once

// A unit: the rows (queries of all heads of a group) whose gradients gather in scratch memory while
// keys pass by. It is cut into slabs, for which P and dS exist, and those into panels, one register
// tile wide.
//
//   Q and dO as steps (staged, or floats in place) and transposed
//   lse2 = LSE log2(e);  delta = rowsum(dO O) - dLSE
#include "sdpa/cpu/backward_dots.h"
#include "sdpa/cpu/backward_job.h"
#include "sdpa/cpu/backward_operands.h"
#include "sdpa/cpu/backward_terms.h"

namespace sdpa::cpu {

/// The lanes of a slab that one register tile is wide, and what masks them.
template <class S>
struct Panel {
  int start = 0;    ///< its first lane within the slab
  int columns = 0;  ///< vectors
  bool is_dotted = false;
  Coverage coverage = Coverage::kNone;
  Lanes lanes;
  ScoreMask<S> mask;

  int width() const { return columns * S::kLanes; }
};

/// Panels are as wide as a tile; four vectors go as two and two, since one alone has too few sums
/// to hide the latency of its additions.
template <class S>
constexpr int panel_columns(int vectors_left) {
  if (vectors_left == S::kColumns + 1 && S::kColumns > 2) return S::kColumns - 1;
  return vectors_left < S::kColumns ? vectors_left : S::kColumns;
}

/// The most panels a slab is cut into.
template <class S>
constexpr int kMaxPanels = kSlabRows / S::kLanes / S::kColumns + 1;

/// Slabs are at least half full.
constexpr int kMaxSlabs = (kUnitRows + kSlabRows - 1) / kSlabRows;

/// Rows [start, start + rows) of a unit, filled up to `lanes`.
template <class S>
struct Slab {
  int start = 0, rows = 0, lanes = 0;
  int first = 0, last = 0;  ///< the keys of the current block that it sees
  int panel_count = 0;
  Panel<S>* panels = nullptr;
};

template <class S>
std::int64_t panel_floats(const Problem&, std::int64_t) {
  return kMaxSlabs * kMaxPanels<S> * sizeof(Panel<S>) / sizeof(float);
}

template <class S, typename Element>
class BackwardUnit {
 public:
  explicit BackwardUnit(const BackwardTask& task)
      : task_(task), s_(*task.job->problem), t_(*task.job->tensors), m_(task.job->layout) {}

  void begin(std::int64_t row) {
    first_row_ = row;
    const std::int64_t left = s_.q_len * s_.group() - row;
    rows_ = static_cast<int>(left < task_.job->unit_rows ? left : task_.job->unit_rows);
    lanes_ = static_cast<int>(padded_columns(rows_));
    make_slabs();
    query_ = Ops::stage_steps(rows_of(t_.query), lanes_, {at(m_.query), m_.qk_stride});
    grad_out_ = Ops::stage_steps(rows_of(t_.grad_out), lanes_, {at(m_.grad_out), m_.v_stride});
    transpose_operands();
    stage_row_terms();
    for (std::int64_t i = 0; i < lanes_ * m_.qk_stride; i += S::kLanes)
      S::store(at(m_.grad_query) + i, S::zero());
  }

  void write_grad_query() const {
    const StagedRows sums{at(m_.grad_query), m_.qk_stride};
    if (task_.query_sums == nullptr)
      return write_rows<S>(sums, static_cast<float>(s_.scale), rows_of(t_.grad_query));
    float* to = task_.query_sums + first_row_ * m_.qk_stride;
    for (std::int64_t i = 0; i < rows_ * m_.qk_stride; i += S::kLanes)
      S::store(to + i, S::load(sums.data + i));
  }

  void write_sink_terms() const {
    for (const Slab<S>& slab : slabs())
      for (int n = 0; n < slab.panel_count; ++n) {
        const int row = slab.start + slab.panels[n].start;
        cpu::write_sink_terms<S>(task_, slab.panels[n].lanes, first_row_ + row, at(m_.lse) + row,
                                 at(m_.delta) + row);
      }
  }

  TensorRows rows_of(const TensorView& view) const {
    return group_rows(view, s_, task_.batch, task_.kv_head, first_row_, rows_);
  }

  /// Sets P of rows that see one key to 1, for keys [first, last) of a panel, whose P of key
  /// `first` on are `p`. From a log-sum-exp it has that one's rounding error: 6e-8 of the score.
  void set_certain(const Panel<S>& panel, std::int64_t first, std::int64_t last, float* p,
                   std::int64_t stride) const {
    if (s_.has_sinks || kElementsPerWord<Element> == 2) return;  // pairs are normalized
    for_each_certain(panel, [&](int lane, std::int64_t key) {
      if (key < first || key >= last) return;
      float& of_key = p[(key - first) * stride + lane];
      if (of_key > 0) of_key = 1;  // neither hidden by a mask nor NaN
    });
  }

  struct Slabs {
    Slab<S>*first, *last;

    Slab<S>* begin() const { return first; }

    Slab<S>* end() const { return last; }
  };

  Slabs slabs() const { return {slabs_, slabs_ + slab_count_}; }

  std::int64_t first_row() const { return first_row_; }

  int rows() const { return rows_; }

  bool has_nan_row() const { return has_nan_row_; }

  const Operand<Element>& query() const { return query_; }

  const Operand<Element>& grad_out() const { return grad_out_; }

  PanelRows<Element> queries_of(const Slab<S>& slab, const Panel<S>& panel) const {
    return rows_of_panel(query_, elements(m_.query_t), s_.qk_dim, score_piece(s_), score_factor(s_),
                         slab, panel);
  }

  PanelRows<Element> grad_outs_of(const Slab<S>& slab, const Panel<S>& panel) const {
    return rows_of_panel(grad_out_, elements(m_.grad_out_t), s_.v_dim, grad_piece(s_),
                         static_cast<float>(s_.dropout.rescale()), slab, panel);
  }

 private:
  using Ops = Operands<S, Element>;
  using V = typename S::Vec;

  float* at(std::int64_t offset) const { return task_.scratch + offset; }

  Element* elements(std::int64_t offset) const { return reinterpret_cast<Element*>(at(offset)); }

  /// `lanes` are [words of columns][width of the panel], panel by panel, so that a panel's lie
  /// close together whatever the unit's width.
  static PanelRows<Element> rows_of_panel(const Operand<Element>& from, const Element* lanes,
                                          std::int64_t columns, std::int64_t piece, float factor,
                                          const Slab<S>& slab, const Panel<S>& panel) {
    const std::int64_t first = slab.start + panel.start;
    return {
        from.rows + first * from.row_stride,     from.row_stride, columns, piece, panel.lanes.count,
        lanes + first * words<Element>(columns), factor};
  }

  /// Slabs of nearly equal size, whole vectors each.
  void make_slabs() {
    auto* panels = reinterpret_cast<Panel<S>*>(at(m_.own));
    slab_count_ = (lanes_ + kSlabRows - 1) / kSlabRows;
    const int size = static_cast<int>(padded_columns(ceil_div(lanes_, slab_count_)));
    for (int n = 0; n < slab_count_; ++n) {
      Slab<S>& slab = slabs_[n];
      slab.start = n * size;
      slab.lanes = lanes_ - slab.start < size ? lanes_ - slab.start : size;
      slab.rows = rows_ - slab.start < slab.lanes ? rows_ - slab.start : slab.lanes;
      slab.panels = panels + n * kMaxPanels<S>;
      make_panels(slab);
    }
  }

  void make_panels(Slab<S>& slab) const {
    slab.panel_count = 0;
    const int first_dotted = first_dotted_lane(slab);
    for (int start = 0; start < slab.lanes;) {
      Panel<S>& panel = slab.panels[slab.panel_count++];
      panel.start = start;
      const int split = first_dotted > start ? first_dotted : slab.lanes;
      panel.is_dotted = start >= first_dotted;
      panel.columns = panel_columns<S>((split - start) / S::kLanes);
      start += panel.width();
      const int count = (slab.rows < start ? slab.rows : start) - panel.start;
      panel.lanes = make_lanes(s_, task_.batch, task_.kv_head,
                               first_row_ + slab.start + panel.start, count > 0 ? count : 0);
    }
  }

  /// Of the slab; its end where it has none.
  int first_dotted_lane(const Slab<S>& slab) const {
    const std::int64_t lane = task_.job->first_dotted_row - first_row_ - slab.start;
    if (kElementsPerWord<Element> != 1 || lane >= slab.lanes) return slab.lanes;
    return lane > 0 ? static_cast<int>(lane) : 0;
  }

  void transpose_operands() {
    for (const Slab<S>& slab : slabs())
      for (int n = 0; n < slab.panel_count; ++n) {
        const Panel<S>& panel = slab.panels[n];
        if (panel.is_dotted) continue;
        const int first = slab.start + panel.start;
        transpose(query_, first, panel.width(), queries_of(slab, panel));
        transpose(grad_out_, first, panel.width(), grad_outs_of(slab, panel));
      }
  }

  static void transpose(const Operand<Element>& from, int first, int width,
                        const PanelRows<Element>& to) {
    Ops::transpose(from, first, width, static_cast<int>(to.columns), to.factor,
                   const_cast<Element*>(to.lanes));
  }

  /// What rounding leaves of a number. Beyond 2^24 scores are whole numbers, which have no like of
  /// what the log-sum-exp leaves.
  static float rest_of(double exact, float rounded) {
    constexpr float kFraction = 0x1p24f;
    const bool has_fraction = -kFraction < rounded && rounded < kFraction;
    return has_fraction ? static_cast<float>(exact - rounded) : 0;
  }

  /// lse2 is +infinity for a row that sees nothing, and for padding: P = exp2(S - lse2) is then 0.
  /// What its rounding leaves is kept: it would be in every P of the row (float32, scores of
  /// standard deviation 6: dV from 1.2 to 1.0 times torch's distance from double precision).
  void stage_row_terms() {
    const TensorRows lse = rows_of(t_.lse);
    TensorRows grad_lse;
    grad_lse.rows = 0;
    if (t_.grad_lse.is_present()) grad_lse = rows_of(t_.grad_lse);
    has_nan_row_ = false;
    stage_output_dots();
    for (int row = 0; row < lanes_; ++row) {
      const float value =
          row < rows_ ? *reinterpret_cast<const float*>(lse.row[row]) : kMinusInfinity;
      const bool sees = value != kMinusInfinity;
      has_nan_row_ |= value != value;
      const double exact = value * kExactLog2E;
      const auto rounded = static_cast<float>(exact);
      at(m_.lse)[row] = sees ? rounded : -kMinusInfinity;
      at(m_.lse_rest)[row] = sees ? rest_of(exact, rounded) : 0;
      float& extra = at(m_.grad_lse)[row];
      extra = sees && grad_lse.rows > 0 ? *reinterpret_cast<const float*>(grad_lse.row[row]) : 0;
      at(m_.delta)[row] = sees ? at(m_.delta)[row] - extra : 0;
    }
  }

  /// rowsum(dO O) of all rows into `delta`.
  void stage_output_dots() {
    TensorRows out = rows_of(t_.out);
    if (!grad_out_.is_finite || kElementsPerWord<Element> != 1 || !is_read_in_place(out))
      stage_output(out);
    if (!grad_out_.is_finite) {
      for (int row = 0; row < rows_; ++row) at(m_.delta)[row] = visible_output_dot(row);
      return;
    }
    for (const Slab<S>& slab : slabs())
      for (int n = 0; n < slab.panel_count; ++n) {
        const Panel<S>& panel = slab.panels[n];
        if constexpr (kElementsPerWord<Element> == 1)
          sum_as_dp(slab, panel, out);
        else
          sum_by_rows(slab.start + panel.start, panel.width());
      }
  }

  /// In the order in which dP sums up: of a row that sees one key dP - delta and with it dS is then
  /// exactly 0. Another order leaves a rounding error, which many such rows add to one key.
  void sum_as_dp(const Slab<S>& slab, const Panel<S>& panel, TensorRows& out) {
    if (!s_.has_sinks && !s_.dropout.is_active()) replace_output_of_one_key(slab, panel, out);
    if (panel.is_dotted) return sum_as_dots(slab, panel, out);
    unroll<S::kColumns>([&](auto j) SDPA_INLINE_LAMBDA {
      if (panel.columns == j + 1) sum_by_columns<j + 1>(slab, panel, out);
    });
  }

  /// Calls `function(lane, key)` for rows that see one key by their position.
  template <class Function>
  static void for_each_certain(const Panel<S>& panel, const Function& function) {
    if (panel.lanes.min_last - panel.lanes.max_first > 1) return;
    for (int lane = 0; lane < panel.lanes.count; ++lane) {
      const std::int64_t key = panel.lanes.first[lane];
      if (panel.lanes.last[lane] == key + 1) function(lane, key);
    }
  }

  /// The output of a row that sees one key is its value but for rounding.
  void replace_output_of_one_key(const Slab<S>& slab, const Panel<S>& panel,
                                 TensorRows& out) const {
    for_each_certain(panel, [&](int lane, std::int64_t key) {
      const int row = slab.start + panel.start + lane;
      const TensorRows value = head_rows(t_.value, task_.batch, task_.kv_head, key, 1);
      out.row[row] = value.row[0];
      if (is_read_in_place(value)) return;
      float* staged = at(m_.out) + row * m_.v_stride;
      stage<S>(value, 1, {staged, m_.v_stride});
      out.row[row] = reinterpret_cast<char*>(staged);
    });
  }

  void sum_as_dots(const Slab<S>& slab, const Panel<S>& panel, const TensorRows& out) const {
    const float* rows[kMaxDecodeRows];
    const int first = slab.start + panel.start;
    for (int lane = 0; lane < panel.lanes.count; ++lane)
      rows[lane] = reinterpret_cast<const float*>(out.row[first + lane]);
    dot_each<S>(grad_outs_of(slab, panel), rows, at(m_.delta) + first);
  }

  static bool is_read_in_place(const TensorRows& rows) {
    return rows.dtype == DType::kFloat32 && rows.step == 1;
  }

  void stage_output(TensorRows& out) const {
    stage<S>(out, lanes_, {at(m_.out), m_.v_stride});
    for (int row = 0; row < rows_; ++row)
      out.row[row] = reinterpret_cast<char*>(at(m_.out) + row * m_.v_stride);
  }

  template <int Columns>
  void sum_by_columns(const Slab<S>& slab, const Panel<S>& panel, const TensorRows& out) {
    float* to = at(m_.delta) + slab.start + panel.start;
    Tile<S, 1, Columns> sum;
    clear(sum);
    for (std::int64_t column = 0; column < s_.v_dim; column += kKeyStep)
      add_columns(slab, panel, out, column, sum);
    store(sum, to, Columns * S::kLanes);
  }

  /// The next kKeyStep columns, whole pieces but for the last.
  template <int Columns>
  void add_columns(const Slab<S>& slab, const Panel<S>& panel, const TensorRows& out,
                   std::int64_t column, Tile<S, 1, Columns>& sum) {
    constexpr int kWidth = Columns * S::kLanes;
    const auto* grad_out = reinterpret_cast<const float*>(grad_outs_of(slab, panel).lanes);
    const int first = slab.start + panel.start;
    const auto factor = static_cast<float>(s_.dropout.rescale());  // in grad_out already
    const std::int64_t left = s_.v_dim - column, columns = left < kKeyStep ? left : kKeyStep;
    const float* row[kWidth];
    for (int i = 0; i < kWidth; ++i)
      row[i] =
          first + i < rows_ ? reinterpret_cast<const float*>(out.row[first + i]) + column : nullptr;
    transpose_in<S>(row, kWidth, columns, factor == 0 ? 0 : 1 / factor, at(m_.p), kWidth);
    const std::int64_t piece = grad_piece(s_);
    for (std::int64_t c = 0; c < columns; c += piece)
      add_piece(at(m_.p) + c * kWidth, grad_out + (column + c) * kWidth,
                columns - c < piece ? columns - c : piece, sum);
  }

  /// Columns that dP sums up in one go.
  template <int Columns>
  SDPA_INLINE static void add_piece(const float* out, const float* grad_out, std::int64_t columns,
                                    Tile<S, 1, Columns>& sum) {
    constexpr int kWidth = Columns * S::kLanes;
    Tile<S, 1, Columns> part;
    clear(part);
    for (std::int64_t at = 0; at < columns * kWidth; at += kWidth)
      unroll<Columns>([&](auto j) SDPA_INLINE_LAMBDA {
        const std::int64_t place = at + j * S::kLanes;
        part.v[0][j] =
            S::multiply_add(S::load(out + place), S::load(grad_out + place), part.v[0][j]);
      });
    unroll<Columns>([&](auto j)
                        SDPA_INLINE_LAMBDA { sum.v[0][j] = S::add(sum.v[0][j], part.v[0][j]); });
  }

  /// As many rows at a time as a vector has lanes: one transposition adds up their lanes.
  void sum_by_rows(int first, int count) {
    for (int row = first; row < first + count; row += S::kLanes) {
      V sums[S::kLanes];
      for (int i = 0; i < S::kLanes; ++i) sums[i] = output_products(row + i);
      S::transpose(sums);
      V total = sums[0];
      for (int i = 1; i < S::kLanes; ++i) total = S::add(total, sums[i]);
      S::store(at(m_.delta) + row, total);
    }
  }

  V output_products(int row) const {
    const Element* grad_out = grad_out_.rows + row * grad_out_.row_stride;
    const float* out = at(m_.out) + row * m_.v_stride;
    V sums = S::zero();
    for (std::int64_t d = 0; d < padded_columns(s_.v_dim); d += S::kLanes)
      sums = S::multiply_add(Ops::load(grad_out, d), S::load(out + d), sums);
    return sums;
  }

  /// An output of exactly 0 may come of keys that were all dropped, or of none.
  float visible_output_dot(int row) const {
    const Element* grad_out = grad_out_.rows + row * grad_out_.row_stride;
    const float* out = at(m_.out) + row * m_.v_stride;
    constexpr int kParts = kElementsPerWord<Element>;
    float sum = 0;
    for (int d = 0; d < s_.v_dim; ++d)
      if (out[d] != 0) sum += element_at(grad_out[d / kParts], d % kParts) * out[d];
    return sum;
  }

  const BackwardTask& task_;
  const Problem& s_;
  const BackwardTensors& t_;
  const BackwardLayout& m_;
  Operand<Element> query_, grad_out_;
  mutable Slab<S> slabs_[kMaxSlabs];
  std::int64_t first_row_ = 0;
  int rows_ = 0, lanes_ = 0, slab_count_ = 0;
  bool has_nan_row_ = false;
};

}  // namespace sdpa::cpu
