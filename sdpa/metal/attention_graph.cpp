// SPDX-License-Identifier: MIT
//
// The blocks of one graph, in the paper's letters:
//
//   S  = (scale Q) K^T;  T = tanh(S / softcap), S = softcap T;  S += mask;  S = -inf where hidden
//   m  = max(rowmax S, sink, lowest);  E = exp(S - m);  l = rowsum E + exp(sink - m)
//   O  = (E keep) V / (l (1 - p));  LSE = m + log l
//
// `lowest`, the least float, keeps -inf - -inf out of a row that sees nothing: its E, l and O are 0
// and its LSE is -inf. A key that no query of the block sees is set to zero before it is used, so
// that a NaN there stays there; so is a query that sees nothing, before it meets a gradient.
#include "sdpa/metal/attention_graph.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "sdpa/metal/graph_blocks.h"

namespace sdpa::metal {
namespace {

constexpr std::int64_t kBatch = 0, kHead = 1, kRow = 2, kColumn = 3;
constexpr double kLowest = -3.4028234663852886e38;  // of float32
constexpr double kTiny = 1.1754943508222875e-38;    // its least normal number
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Element kFloat = Element::kFloat32;

/// What Apple's operator is told to hide. Not -infinity: where a first tile hides all keys, a
/// running maximum of -infinity would make NaN.
double hidden_score(Element type) { return type == Element::kFloat16 ? -3e4 : -1e38; }

/// A row of a mask that holds no number above this is moved up to 0, which changes no softmax: it
/// would come near to what is hidden, as a mask of the least finite number does.
constexpr double kFarDown = -1000;

/// The nodes of one block's softmax.
struct Softmax {
  std::optional<NodeId> visible;    // bool, where anything is hidden
  std::optional<NodeId> sees;       // bool [batch, heads, rows, 1]: the row sees a key
  std::optional<NodeId> tangent;    // tanh(S / softcap)
  std::optional<NodeId> from_sink;  // exp(sink - m)
  NodeId query;                     // scaled, grouped
  NodeId key;
  NodeId exponential;  // E
  NodeId row_max;      // m
  NodeId row_sum;      // l
};

class AttentionGraph {
 public:
  explicit AttentionGraph(const GraphSpec& spec)
      : spec_(spec), s_(spec.problem), type_(element_of(s_.dtype)) {}

  Graph build() {
    add_inputs();
    spec_.pass == Pass::kForward ? build_forward() : build_backward();
    return std::move(g_);
  }

 private:
  // ---- Inputs ----

  void add_inputs() {
    query_ = g_.input(Role::kQuery, type_, {s_.batch, s_.q_heads, s_.q_len, s_.qk_dim});
    key_ = g_.input(Role::kKey, type_, {s_.batch, s_.kv_heads, s_.kv_len, s_.qk_dim});
    value_ = g_.input(Role::kValue, type_, {s_.batch, s_.kv_heads, s_.kv_len, s_.v_dim});
    if (s_.mask != MaskKind::kNone) {
      mask_ =
          g_.input(Role::kMask, element_of(s_.mask_dtype), {spec_.mask.begin(), spec_.mask.end()});
    }
    if (s_.has_sinks) {
      sinks_ = g_.input(Role::kSinks, element_of(spec_.sinks_dtype), {1, s_.q_heads, 1, 1});
    }
    if (s_.dropout.is_active()) {
      keep_ = g_.input(Role::kKeep, Element::kBool, {s_.batch, s_.q_heads, s_.q_len, s_.kv_len});
    }
    if (spec_.pass == Pass::kForward) return;
    grad_out_ = g_.input(Role::kGradOut, type_, {s_.batch, s_.q_heads, s_.q_len, s_.v_dim});
    if (spec_.grad_lse) {
      grad_lse_ = g_.input(Role::kGradLse, kFloat, {s_.batch, s_.q_heads, s_.q_len, 1});
    }
  }

  // ---- Small words ----

  NodeId number(double value, Element type = kFloat) { return g_.constant(value, type); }

  NodeId multiply(NodeId a, NodeId b) { return g_.binary(Op::kMultiply, a, b); }

  NodeId times(NodeId x, double factor) { return factor == 1 ? x : multiply(x, number(factor)); }

  NodeId to_float(NodeId x) { return g_.cast(x, kFloat); }

  NodeId zero_unless(std::optional<NodeId> holds, NodeId x) {
    return holds ? g_.select(*holds, x, number(0, g_.at(x).type)) : x;
  }

  /// Rows of a head's queries, keys of a mask: a part of a dimension that does not broadcast.
  NodeId part(NodeId x, std::int64_t axis, std::int64_t first, std::int64_t count) {
    return g_.shape(x)[static_cast<std::size_t>(axis)] == 1 ? x : g_.slice(x, axis, first, count);
  }

  NodeId rows_of(NodeId x, const Block& b) { return part(x, kRow, b.row, b.rows); }

  /// Keys and values have their keys as rows.
  NodeId keys_of(NodeId x, const Block& b) { return g_.slice(x, kRow, b.key, b.keys); }

  NodeId tile_of(NodeId x, const Block& b) { return part(rows_of(x, b), kColumn, b.key, b.keys); }

  /// The heads of a group as rows of the key's head, and back.
  NodeId grouped(NodeId x) {
    const Shape& n = g_.shape(x);
    return g_.reshape(x, {n[0], s_.kv_heads, s_.group() * n[2], n[3]});
  }

  NodeId ungrouped(NodeId x) {
    const Shape& n = g_.shape(x);
    return g_.reshape(x, {n[0], s_.q_heads, n[2] / s_.group(), n[3]});
  }

  /// A product whose sums are no longer than the limit.
  NodeId product(NodeId a, NodeId b) {
    const std::int64_t length = g_.shape(a)[3], step = spec_.limits.reduction;
    NodeId sum = kNoNode;
    for (std::int64_t first = 0; first < length; first += step) {
      const std::int64_t count = std::min(step, length - first);
      const NodeId term =
          g_.matmul(g_.slice(a, kColumn, first, count), g_.slice(b, kRow, first, count));
      sum = sum == kNoNode ? term : g_.binary(Op::kAdd, sum, term);
    }
    return sum;
  }

  NodeId any_of(NodeId holds, std::int64_t axis) {
    const NodeId found = g_.reduce(Op::kReduceMax, to_float(holds), axis);
    return g_.binary(Op::kNotEqual, found, number(0));
  }

  // ---- What is visible ----

  /// What causality and the window show of a block: key minus query, both counted from its corner,
  /// is within bounds.
  std::optional<NodeId> band(const Block& b) {
    if (!b.hides_before && !b.hides_after) return std::nullopt;
    const std::int64_t shift = s_.diagonal() + b.row - b.key;
    const std::int64_t right = s_.causal != Causal::kNone ? 0 : s_.window.right;
    const NodeId distance = g_.binary(Op::kSubtract, g_.coordinate(kColumn, {1, 1, 1, b.keys}),
                                      g_.coordinate(kRow, {1, 1, b.rows, 1}));
    const auto at = [&](std::int64_t bound) {
      return number(static_cast<double>(bound), Element::kInt32);
    };
    std::optional<NodeId> shown;
    if (b.hides_after) shown = g_.binary(Op::kLessOrEqual, distance, at(shift + right));
    if (b.hides_before) {
      shown = both(shown, g_.binary(Op::kLessOrEqual, at(shift - s_.window.left), distance));
    }
    return shown;
  }

  std::optional<NodeId> both(std::optional<NodeId> a, std::optional<NodeId> b) {
    return a && b ? g_.binary(Op::kAnd, *a, *b) : a ? a : b;
  }

  std::optional<NodeId> unmasked(const Block& b) {
    if (s_.mask == MaskKind::kNone) return std::nullopt;
    const NodeId tile = tile_of(mask_, b);
    if (s_.mask == MaskKind::kBool) return tile;
    return g_.binary(Op::kNotEqual, to_float(tile), number(-kInfinity));
  }

  std::optional<NodeId> visible(const Block& b) { return both(band(b), unmasked(b)); }

  /// Which keys a query of the block sees, as rows of keys and values: [batch, kv_heads, keys, 1].
  /// Only a mask hides a key that is in the block from all its queries.
  std::optional<NodeId> seen_keys(std::optional<NodeId> visible, const Block& b) {
    if (s_.mask == MaskKind::kNone || !visible) return std::nullopt;
    NodeId seen = any_of(*visible, kRow);
    Shape n = g_.shape(seen);
    if (n[1] != 1 && s_.group() > 1) {
      seen = any_of(g_.reshape(seen, {n[0], s_.kv_heads, s_.group(), n[3]}), kRow);
    }
    n = g_.shape(seen);
    if (n[3] == 1) seen = g_.broadcast(seen, {n[0], n[1], n[2], b.keys});
    return g_.transpose(seen);
  }

  // ---- Softmax ----

  Softmax softmax(const Block& b) {
    Softmax m{};
    m.visible = visible(b);
    const auto seen = seen_keys(m.visible, b);
    m.key = zero_unless(seen, to_float(keys_of(key_, b)));
    m.query = grouped(times(to_float(rows_of(query_, b)), s_.scale));
    NodeId scores = ungrouped(product(m.query, g_.transpose(m.key)));
    if (s_.softcap > 0) {
      m.tangent = g_.unary(Op::kTanh, times(scores, 1 / s_.softcap));
      scores = times(*m.tangent, s_.softcap);
    }
    if (s_.mask == MaskKind::kAdditive) {
      scores = g_.binary(Op::kAdd, scores, to_float(tile_of(mask_, b)));
    }
    if (m.visible) scores = g_.select(*m.visible, scores, number(-kInfinity));
    add_sums(m, scores);
    return m;
  }

  void add_sums(Softmax& m, NodeId scores) {
    NodeId top =
        g_.binary(Op::kMaximum, g_.reduce(Op::kReduceMax, scores, kColumn), number(kLowest));
    if (s_.has_sinks) top = g_.binary(Op::kMaximum, top, to_float(sinks_));
    m.row_max = top;
    m.exponential = g_.unary(Op::kExp, g_.binary(Op::kSubtract, scores, top));
    m.row_sum = g_.reduce(Op::kReduceSum, m.exponential, kColumn);
    if (m.visible) m.sees = g_.binary(Op::kNotEqual, m.row_sum, number(0));
    if (!s_.has_sinks) return;
    m.from_sink = g_.unary(Op::kExp, g_.binary(Op::kSubtract, to_float(sinks_), top));
    m.row_sum = g_.binary(Op::kAdd, m.row_sum, *m.from_sink);
  }

  /// l, or a number that is no zero where nothing is seen: what is divided is zero then.
  NodeId divisor(const Softmax& m) {
    return m.visible ? g_.binary(Op::kMaximum, m.row_sum, number(kTiny)) : m.row_sum;
  }

  NodeId dropped(NodeId x, const Block& b) {
    return s_.dropout.is_active() ? zero_unless(tile_of(keep_, b), x) : x;
  }

  NodeId values_of(const Softmax& m, const Block& b) {
    return zero_unless(seen_keys(m.visible, b), to_float(keys_of(value_, b)));
  }

  double rescale() const { return s_.dropout.is_active() ? s_.dropout.rescale() : 1; }

  // ---- Forward ----

  void build_forward() {
    std::vector<NodeId> outs, sums;
    for (const Block& b : blocks_of(spec_)) {
      if (uses_operator(spec_)) {
        outs.push_back(apple_forward(b));
        continue;
      }
      const Softmax m = softmax(b);
      outs.push_back(g_.cast(forward_block(m, b), type_));
      if (spec_.lse) {
        sums.push_back(g_.binary(Op::kAdd, m.row_max, g_.unary(Op::kLog, m.row_sum)));
      }
    }
    g_.output(Role::kOut, g_.concat(outs, kRow));
    if (spec_.lse) g_.output(Role::kLse, g_.concat(sums, kRow));
  }

  NodeId forward_block(const Softmax& m, const Block& b) {
    const NodeId weights = grouped(dropped(m.exponential, b));
    const NodeId sum = ungrouped(product(weights, values_of(m, b)));
    return zero_unless(m.sees, g_.binary(Op::kDivide, times(sum, rescale()), divisor(m)));
  }

  /// A mask of numbers with what is hidden in it, in float32.
  NodeId shifted_bias(NodeId visible, const Block& b) {
    NodeId bias = to_float(tile_of(mask_, b));
    const NodeId top =
        g_.reduce(Op::kReduceMax, g_.select(visible, bias, number(-kInfinity)), kColumn);
    const NodeId is_far = g_.binary(Op::kLessOrEqual, top, number(kFarDown));
    bias = g_.binary(Op::kSubtract, bias, zero_unless(is_far, top));
    const NodeId hidden = number(hidden_score(type_));
    return g_.binary(Op::kMaximum, g_.select(visible, bias, hidden), hidden);
  }

  /// The mask of Apple's operator, in the tensors' dtype, with all rows and columns there.
  NodeId operator_mask(NodeId visible, const Block& b) {
    const NodeId bias =
        s_.mask == MaskKind::kAdditive
            ? g_.cast(shifted_bias(visible, b), type_)
            : g_.select(visible, number(0, type_), number(hidden_score(type_), type_));
    const Shape n = broadcast_shape(g_.shape(bias), {1, 1, b.rows, b.keys});
    if (s_.group() == 1) return g_.broadcast(bias, n);
    const std::int64_t group = s_.group(), heads = n[1] == 1 ? 1 : s_.kv_heads;
    return g_.reshape(g_.broadcast(bias, {n[0], heads * group, b.rows, b.keys}),
                      {n[0], heads, group * b.rows, b.keys});
  }

  NodeId apple_forward(const Block& b) {
    AttentionOptions options{.scale = s_.scale, .causal = uses_causal_operator(spec_)};
    const auto shown = options.causal ? std::nullopt : visible(b);
    const auto seen = seen_keys(shown, b);
    if (shown) options.mask = operator_mask(*shown, b);
    if (s_.has_sinks) options.sinks = g_.cast(g_.reshape(sinks_, {s_.q_heads}), type_);
    const NodeId out =
        g_.attention(grouped(rows_of(query_, b)), zero_unless(seen, keys_of(key_, b)),
                     zero_unless(seen, keys_of(value_, b)), options);
    if (!shown) return ungrouped(out);
    NodeId sees = *shown;
    if (g_.shape(sees)[kColumn] != 1) sees = any_of(sees, kColumn);
    return zero_unless(sees, ungrouped(out));
  }

  // ---- Backward ----

  /// Terms of a gradient from all blocks.
  using Terms = std::vector<NodeId>;

  void build_backward() {
    Terms queries, masks;
    std::optional<NodeId> key, value, mask, sinks;
    for (const Block& b : blocks_of(spec_)) {
      const Softmax m = softmax(b);
      const NodeId p = g_.binary(Op::kDivide, m.exponential, divisor(m));
      const NodeId grad_out = zero_unless(m.sees, to_float(rows_of(grad_out_, b)));
      if (spec_.grad_value) {
        const NodeId kept = times(dropped(p, b), rescale());
        add_to(value, spread(product(g_.transpose(grouped(kept)), grouped(grad_out)), b, kRow));
      }
      const NodeId product_v = product(grouped(grad_out), g_.transpose(values_of(m, b)));
      const NodeId dp = times(dropped(ungrouped(product_v), b), rescale());
      const NodeId delta = sum_over(multiply(p, dp), kColumn);
      NodeId ds = multiply(p, g_.binary(Op::kSubtract, dp, less_grad_lse(delta, m.sees, b)));
      if (spec_.grad_sinks) add_to(sinks, grad_sinks(m, less_grad_lse(delta, {}, b)));
      if (spec_.wants_grad_mask()) add_mask_term(masks, mask, ds, b);
      ds = grouped(through_softcap(ds, m));
      if (spec_.grad_query) {
        queries.push_back(g_.cast(ungrouped(times(product(ds, m.key), s_.scale)), type_));
      }
      if (spec_.grad_key) {
        const NodeId rows = grouped(zero_unless(m.sees, ungrouped(m.query)));
        add_to(key, spread(product(g_.transpose(ds), rows), b, kRow));
      }
    }
    if (spec_.grad_query) g_.output(Role::kGradQuery, g_.concat(queries, kRow));
    if (spec_.grad_key) g_.output(Role::kGradKey, g_.cast(*key, type_));
    if (spec_.grad_value) g_.output(Role::kGradValue, g_.cast(*value, type_));
    if (spec_.wants_grad_mask()) g_.output(Role::kGradMask, mask ? *mask : g_.concat(masks, kRow));
    if (spec_.grad_sinks) g_.output(Role::kGradSinks, *sinks);
  }

  void add_to(std::optional<NodeId>& sum, NodeId term) {
    sum = sum ? g_.binary(Op::kAdd, *sum, term) : term;
  }

  /// A block's keys within all keys, zero elsewhere.
  NodeId spread(NodeId x, const Block& b, std::int64_t axis) {
    std::vector<NodeId> parts{x};
    const auto zeros = [&](std::int64_t count) {
      Shape n = g_.shape(x);
      n[static_cast<std::size_t>(axis)] = count;
      return g_.constant(0, g_.at(x).type, n);
    };
    const std::int64_t after = s_.kv_len - b.key - b.keys;
    if (b.key > 0) parts.insert(parts.begin(), zeros(b.key));
    if (after > 0) parts.push_back(zeros(after));
    return g_.concat(parts, axis);
  }

  /// D - dLSE. A row that sees no key has no part in the keys' gradients, but in that of its sink,
  /// which is then its log-sum-exp.
  NodeId less_grad_lse(NodeId delta, const std::optional<NodeId>& sees, const Block& b) {
    if (!spec_.grad_lse) return delta;
    return g_.binary(Op::kSubtract, delta, zero_unless(sees, rows_of(grad_lse_, b)));
  }

  NodeId through_softcap(NodeId ds, const Softmax& m) {
    if (!m.tangent) return ds;
    const NodeId square = multiply(*m.tangent, *m.tangent);
    return multiply(ds, g_.binary(Op::kSubtract, number(1), square));
  }

  NodeId sum_over(NodeId x, std::int64_t axis) { return g_.reduce(Op::kReduceSum, x, axis); }

  NodeId grad_sinks(const Softmax& m, NodeId delta) {
    const NodeId p = g_.binary(Op::kDivide, *m.from_sink, divisor(m));
    return times(sum_over(sum_over(multiply(p, delta), kBatch), kRow), -1);
  }

  /// dS summed over what the mask's gradient broadcasts over; blocks of rows lie one after the
  /// other, or add up where all rows share one.
  void add_mask_term(Terms& rows, std::optional<NodeId>& sum, NodeId ds, const Block& b) {
    for (const std::int64_t axis : {kBatch, kHead, kRow, kColumn}) {
      if (spec_.grad_mask[static_cast<std::size_t>(axis)] == 1) ds = sum_over(ds, axis);
    }
    if (spec_.grad_mask[kColumn] != 1) ds = spread(ds, b, kColumn);
    if (spec_.grad_mask[kRow] == 1) return add_to(sum, ds);
    rows.push_back(ds);
  }

  const GraphSpec& spec_;
  const Problem& s_;
  const Element type_;
  Graph g_;
  NodeId query_ = kNoNode, key_ = kNoNode, value_ = kNoNode, mask_ = kNoNode, sinks_ = kNoNode;
  NodeId keep_ = kNoNode, grad_out_ = kNoNode, grad_lse_ = kNoNode;
};

}  // namespace

Graph make_graph(const GraphSpec& spec) { return AttentionGraph(spec).build(); }

}  // namespace sdpa::metal
