// SPDX-License-Identifier: MIT
//
// One query and one key a head:  P = 1;  dS = P (dO V - dO O + dLSE)
//   dQ = scale dS K;  dK = sum over the group of scale dS Q;  dV = sum over the group of P dO
#include "sdpa/cpu/backward_pair.h"

#include <algorithm>
#include <limits>

#include "sdpa/cpu/lanes.h"
#include "sdpa/threads.h"

namespace sdpa::cpu {
namespace {

/// A task takes so many heads: it must last longer than waking a thread does.
constexpr std::int64_t kHeadsOfTask = 128;

/// Sums that do not wait for each other.
constexpr int kSums = 8;

/// The one row of a head.
struct Row {
  float* data = nullptr;
  std::int64_t step = 1;

  float& operator[](std::int64_t column) const { return data[column * step]; }

  bool is_present() const { return data != nullptr; }
};

Row row_of(const TensorView& view, std::int64_t batch, std::int64_t head) {
  if (!view.is_present()) return {};
  return {static_cast<float*>(view.data) + batch * view.strides[0] + head * view.strides[1],
          view.strides[3]};
}

float dot(const Row& a, const Row& b, std::int64_t columns) {
  float sums[kSums] = {}, total = 0;
  std::int64_t d = 0;
  if (a.step == 1 && b.step == 1)
    for (; d + kSums <= columns; d += kSums)
      for (int n = 0; n < kSums; ++n) sums[n] += a.data[d + n] * b.data[d + n];
  for (; d < columns; ++d) total += a[d] * b[d];
  for (const float sum : sums) total += sum;
  return total;
}

/// to += factor from, or to = factor from.
void add(const Row& to, float factor, const Row& from, std::int64_t columns, bool is_first) {
  if (!to.is_present()) return;
  for (std::int64_t d = 0; d < columns; ++d) to[d] = factor * from[d] + (is_first ? 0.0f : to[d]);
}

void run_head(const Problem& s, const BackwardTensors& t, std::int64_t batch,
              std::int64_t kv_head) {
  const auto scale = static_cast<float>(s.scale);
  const Row key = row_of(t.key, batch, kv_head), value = row_of(t.value, batch, kv_head);
  for (std::int64_t n = 0; n < s.group(); ++n) {
    const std::int64_t head = kv_head * s.group() + n;
    const Row query = row_of(t.query, batch, head), grad_out = row_of(t.grad_out, batch, head);
    const float lse = row_of(t.lse, batch, head)[0];
    float p = 0, grad_score = 0;  // a score of minus infinity leaves its row empty
    if (lse != -std::numeric_limits<float>::infinity()) {
      p = 1 + (lse - lse);  // NaN where the score is no number
      grad_score =
          dot(grad_out, value, s.v_dim) - dot(grad_out, row_of(t.out, batch, head), s.v_dim);
      if (t.grad_lse.is_present()) grad_score += row_of(t.grad_lse, batch, head)[0];
      grad_score *= p * scale;
    }
    add(row_of(t.grad_query, batch, head), grad_score, key, s.qk_dim, true);
    add(row_of(t.grad_key, batch, kv_head), grad_score, query, s.qk_dim, n == 0);
    add(row_of(t.grad_value, batch, kv_head), p, grad_out, s.v_dim, n == 0);
  }
}

}  // namespace

bool is_pair(const Problem& problem) {
  return problem.dtype == DType::kFloat32 && problem.q_len == 1 && problem.kv_len == 1 &&
         problem.mask == MaskKind::kNone && problem.softcap == 0 && !problem.has_sinks &&
         !problem.dropout.is_active();
}

void backward_pairs(const Problem& problem, const BackwardTensors& tensors) {
  const std::int64_t heads = problem.batch * problem.kv_heads;
  parallel_for(ceil_div(heads, kHeadsOfTask), [&](std::int64_t task, int) {
    const std::int64_t last = std::min(heads, (task + 1) * kHeadsOfTask);
    for (std::int64_t head = task * kHeadsOfTask; head < last; ++head)
      run_head(problem, tensors, head / problem.kv_heads, head % problem.kv_heads);
  });
}

}  // namespace sdpa::cpu
