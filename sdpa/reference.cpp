// SPDX-License-Identifier: MIT
//
// clang-format off
//   S    = scale Q K^T;  S = softcap tanh(S / softcap);  S += mask, or not visible
//   P    = softmax(S) over the visible keys and the sink;  LSE = logsumexp(S)
//   O    = (P keep / (1 - p)) V
//   D    = rowsum(dO O);  dP = (dO V^T) keep / (1 - p);  dS = P (dP - D + dLSE)
//   dV   = (P keep / (1 - p))^T dO;  dmask = dS;  dsink = -P_sink (D - dLSE)
//   dS  *= 1 - (S / softcap)^2, S before the mask
//   dQ   = scale dS K;  dK = scale dS^T Q
// clang-format on
//
// A key that is not visible is never read, so a NaN there has no effect. A row that sees nothing
// has O = 0, LSE = -infinity and no gradient. (With a sink, a row that sees no key has LSE = sink.)
#include "sdpa/reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "sdpa/dropout.h"
#include "sdpa/element.h"

namespace sdpa::reference {
namespace {

/// One query of one head: its scores, probabilities and log-sum-exp over the keys it sees.
struct Row {
  std::vector<std::int64_t> keys;  ///< visible keys; the arrays below run beside it
  std::vector<double> capped;      ///< scores after the soft cap, before the mask
  std::vector<double> p, keep;     ///< probability; 0 or 1 / (1 - dropout)
  double lse = -INFINITY;
  double p_sink = 0;
};

template <typename Tensors>
void score_row(const Problem& s, const Tensors& t, std::int64_t b, std::int64_t h, std::int64_t i,
               Row& row) {
  const std::int64_t g = h / s.group();
  row = {};
  for (std::int64_t j = s.first_key(i); j < s.last_key(i); ++j) {
    if (s.mask == MaskKind::kBool && read(t.mask, b, h, i, j) == 0) continue;
    const double bias = s.mask == MaskKind::kAdditive ? read(t.mask, b, h, i, j) : 0;
    if (bias == -INFINITY) continue;
    double score = 0;
    for (std::int64_t d = 0; d < s.qk_dim; ++d)
      score += read(t.query, b, h, i, d) * read(t.key, b, g, j, d);
    score *= s.scale;
    if (s.softcap > 0) score = s.softcap * std::tanh(score / s.softcap);
    row.keys.push_back(j);
    row.capped.push_back(score);
    row.p.push_back(score + bias);
  }
}

void softmax(const Problem& s, const TensorView& sinks, std::int64_t bh, std::int64_t h,
             std::int64_t i, Row& row) {
  const double sink = s.has_sinks ? read(sinks, 0, h, 0, 0) : -INFINITY;
  double max = sink, sum = 0;
  for (double score : row.p) max = std::isnan(score) || score > max ? score : max;
  if (max == -INFINITY) return row.keys.clear();
  for (double score : row.p) sum += std::exp(score - max);
  sum += std::exp(sink - max);
  row.lse = max + std::log(sum);
  row.p_sink = std::exp(sink - row.lse);
  for (double& score : row.p) score = std::exp(score - row.lse);
  for (std::int64_t j : row.keys)
    row.keep.push_back(!s.dropout.is_active()         ? 1
                       : is_kept(s.dropout, bh, i, j) ? s.dropout.rescale()
                                                      : 0);
}

template <typename Tensors, typename Function>
void for_each_row(const Problem& s, const Tensors& t, RowRange rows, Function&& function) {
  Row row;
  for (std::int64_t b = 0; b < s.batch; ++b)
    for (std::int64_t h = 0; h < s.q_heads; ++h)
      for (std::int64_t i = rows.first; i < std::min(s.q_len, rows.last); ++i) {
        score_row(s, t, b, h, i, row);
        softmax(s, t.sinks, b * s.q_heads + h, h, i, row);
        function(b, h, i, row);
      }
}

}  // namespace

bool is_kept(const Dropout& dropout, std::int64_t batch_head, std::int64_t query,
             std::int64_t key) {
  return dropout_word(static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(query),
                      static_cast<std::uint32_t>(batch_head + dropout.first_head), dropout.offset,
                      static_cast<std::uint32_t>(dropout.seed),
                      static_cast<std::uint32_t>(dropout.seed >> 32)) >= dropout.threshold();
}

void forward(const Problem& s, const ForwardTensors& t, RowRange rows) {
  for_each_row(s, t, rows, [&](std::int64_t b, std::int64_t h, std::int64_t i, const Row& row) {
    for (std::int64_t d = 0; d < s.v_dim; ++d) {
      double o = 0;
      for (std::size_t n = 0; n < row.keys.size(); ++n)
        if (row.keep[n] != 0)
          o += row.p[n] * row.keep[n] * read(t.value, b, h / s.group(), row.keys[n], d);
      write(t.out, b, h, i, d, o);
    }
    if (t.lse.is_present()) write(t.lse, b, h, i, 0, row.lse);
  });
}

/// Double-precision sums of one gradient, laid out densely, written once at the end.
struct Accumulator {
  TensorView view;
  std::vector<double> sums;

  explicit Accumulator(const TensorView& gradient)
      : view(gradient), sums(static_cast<std::size_t>(gradient.element_count())) {}

  double* row(std::int64_t b, std::int64_t h, std::int64_t r) {
    return sums.data() + ((b * view.shape[1] + h) * view.shape[2] + r) * view.shape[3];
  }

  void store() {
    for (std::int64_t b = 0; b < view.shape[0]; ++b)
      for (std::int64_t h = 0; h < view.shape[1]; ++h)
        for (std::int64_t r = 0; r < view.shape[2]; ++r)
          for (std::int64_t c = 0; c < view.shape[3]; ++c) write(view, b, h, r, c, row(b, h, r)[c]);
  }
};

void backward(const Problem& s, const BackwardTensors& t) {
  Accumulator dq(t.grad_query), dk(t.grad_key), dv(t.grad_value);
  std::vector<double> dp;
  const auto add = [](const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t r,
                      std::int64_t c,
                      double value) { write(view, b, h, r, c, read(view, b, h, r, c) + value); };
  for_each_row(s, t, {}, [&](std::int64_t b, std::int64_t h, std::int64_t i, const Row& row) {
    const std::int64_t g = h / s.group();
    const double dlse =
        t.grad_lse.is_present() && row.lse != -INFINITY ? read(t.grad_lse, b, h, i, 0) : 0;
    double delta = 0;
    dp.assign(row.keys.size(), 0);
    for (std::size_t n = 0; n < row.keys.size(); ++n) {
      for (std::int64_t d = 0; row.keep[n] != 0 && d < s.v_dim; ++d) {
        const double go = read(t.grad_out, b, h, i, d);
        dp[n] += go * read(t.value, b, g, row.keys[n], d) * row.keep[n];
        if (t.grad_value.is_present()) dv.row(b, g, row.keys[n])[d] += row.p[n] * row.keep[n] * go;
      }
      delta += row.p[n] * dp[n];
    }
    if (t.grad_sinks.is_present() && row.lse != -INFINITY)
      add(t.grad_sinks, 0, h, 0, 0, -row.p_sink * (delta - dlse));
    for (std::size_t n = 0; n < row.keys.size(); ++n) {
      double ds = row.p[n] * (dp[n] - delta + dlse);
      if (t.grad_mask.is_present()) add(t.grad_mask, b, h, i, row.keys[n], ds);
      if (s.softcap > 0) ds *= 1 - std::pow(row.capped[n] / s.softcap, 2);
      for (std::int64_t d = 0; d < s.qk_dim; ++d) {
        if (t.grad_query.is_present())
          dq.row(b, h, i)[d] += s.scale * ds * read(t.key, b, g, row.keys[n], d);
        if (t.grad_key.is_present())
          dk.row(b, g, row.keys[n])[d] += s.scale * ds * read(t.query, b, h, i, d);
      }
    }
  });
  if (t.grad_query.is_present()) dq.store();
  if (t.grad_key.is_present()) dk.store();
  if (t.grad_value.is_present()) dv.store();
}

}  // namespace sdpa::reference
