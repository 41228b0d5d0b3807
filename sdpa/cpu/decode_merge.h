// SPDX-License-Identifier: MIT
#pragma once

// What the parts of a head leave behind, and how they become its output.

#include "sdpa/cpu/decode_plan.h"
#include "sdpa/cpu/lanes.h"
#include "sdpa/cpu/score.h"
#include "sdpa/cpu/scratch.h"
#include "sdpa/cpu/tile.h"

namespace sdpa::cpu {

/// What a part leaves behind: for each row its maximum and sums, and the output before division.
struct DecodePartial {
  float* row_max;     ///< [kMaxDecodeRows]
  float* row_sum;     ///< [kMaxDecodeRows]
  float* weight_sum;  ///< [kMaxDecodeRows]: row_sum of probabilities as the output takes them
  float* out;         ///< [rows][padded v_dim]
};

constexpr std::int64_t kDecodePad = 2 * kMaxLanes;

constexpr std::int64_t padded_for_decode(std::int64_t columns) {
  return ceil_div(columns, kDecodePad) * kDecodePad;
}

/// Partial results one after the other.
struct DecodePartials {
  float* data;
  std::int64_t rows, columns;

  static std::int64_t floats(std::int64_t rows, std::int64_t v_dim) {
    return 3 * kMaxDecodeRows + rows * padded_for_decode(v_dim);
  }

  DecodePartial operator[](std::int64_t index) const {
    float* at = data + index * floats(rows, columns);
    return {.row_max = at,
            .row_sum = at + kMaxDecodeRows,
            .weight_sum = at + 2 * kMaxDecodeRows,
            .out = at + 3 * kMaxDecodeRows};
  }
};

/// Merges the parts of a head in their order, by the log-sum-exp of each:
///
///   m = max(row_max_i, sink);  w_i = 2^(row_max_i - m);  l = sum w_i row_sum_i + 2^(sink - m)
///   out = sum w_i O_i / l;  lse = m ln 2 + ln l
template <class S, typename Data>
struct DecodeMerge {
  const Problem& problem;
  const ForwardTensors& tensors;
  const Lanes& lanes;
  DecodePartials parts;
  std::int64_t first = 0, count = 0;  ///< parts of this head
  float* weights = nullptr;           ///< [count]
  Data* row_buffer = nullptr;         ///< [v_dim], for elements that are not neighbours

  void run() {
    for (int row = 0; row < lanes.count; ++row) {
      const float sum = weigh(row);
      store_row(row, sum == 0 ? 0 : static_cast<float>(problem.dropout.rescale()) / sum);
    }
  }

 private:
  static float exp2_of(float t) {
    float lanes[S::kLanes];
    S::store(lanes, exp2<S>(S::broadcast(t)));
    return lanes[0];
  }

  /// What the row's output is divided by; writes its log-sum-exp.
  float weigh(int row) {
    const float sink =
        problem.has_sinks ? sink_logit(tensors.sinks, lanes.head[row]) : -__builtin_inff();
    float top = sink == sink ? sink : -__builtin_inff();
    for (std::int64_t i = 0; i < count; ++i) {
      const float each = parts[first + i].row_max[row];
      top = each > top ? each : top;
    }
    const float base = top == -__builtin_inff() ? 0 : top;
    float sum = problem.has_sinks ? exp2_of(sink - base) : 0, weight_sum = sum;
    for (std::int64_t i = 0; i < count; ++i) {
      const DecodePartial part = parts[first + i];
      weights[i] = exp2_of(part.row_max[row] - base);
      sum += weights[i] * part.row_sum[row];
      weight_sum += weights[i] * part.weight_sum[row];
    }
    if (tensors.lse.is_present()) *row_of<float>(tensors.lse, lanes, row) = log_sum_exp(top, sum);
    return weight_sum + 0 * sum;  // a rounded NaN may not be one
  }

  void store_row(int row, float factor) {
    Data* to = row_of<Data>(tensors.out, lanes, row);
    const std::int64_t stride = tensors.out.strides[3];
    Data* dense = stride == 1 ? to : row_buffer;
    const std::int64_t offset = row * padded_for_decode(problem.v_dim);
    for (std::int64_t d = 0; d < problem.v_dim; d += S::kLanes) {
      auto sum = S::zero();
      for (std::int64_t i = 0; i < count; ++i)
        sum = S::multiply_add(S::broadcast(weights[i]), S::load(parts[first + i].out + offset + d),
                              sum);
      sum = S::mul(sum, S::broadcast(factor));
      if (d + S::kLanes <= problem.v_dim)
        S::store(dense + d, sum);
      else
        S::store_part(dense + d, sum, static_cast<int>(problem.v_dim - d));
    }
    for (std::int64_t d = 0; stride != 1 && d < problem.v_dim; ++d) to[d * stride] = dense[d];
  }
};

}  // namespace sdpa::cpu
