// SPDX-License-Identifier: MIT
#include "sdpa/problem.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace sdpa {
namespace {

constexpr double kTwoTo32 = 4294967296.0;

std::string pair_or_one(std::int64_t first, std::int64_t second, char separator) {
  std::string text = std::to_string(first);
  return first == second ? text : text + separator + std::to_string(second);
}

}  // namespace

std::uint32_t Dropout::threshold() const {
  return static_cast<std::uint32_t>(std::min(std::round(probability * kTwoTo32), kTwoTo32 - 1));
}

double Dropout::rescale() const { return probability >= 1 ? 0 : 1 / (1 - probability); }

std::int64_t Problem::first_key(std::int64_t row) const {
  if (window.left < 0) return 0;
  return std::clamp<std::int64_t>(row + diagonal() - window.left, 0, kv_len);
}

std::int64_t Problem::last_key(std::int64_t row) const {
  std::int64_t last = kv_len;
  const std::int64_t position = row + diagonal();
  if (causal != Causal::kNone) last = std::min(last, position + 1);
  if (window.right >= 0) last = std::min(last, position + window.right + 1);
  return std::max<std::int64_t>(last, 0);
}

double visible_pairs(const Problem& problem) {
  double pairs = 0;
  for (std::int64_t row = 0; row < problem.q_len; ++row)
    pairs += static_cast<double>(
        std::max<std::int64_t>(problem.last_key(row) - problem.first_key(row), 0));
  return pairs * static_cast<double>(problem.batch * problem.q_heads);
}

double flops(const Problem& problem, Pass pass) {
  const double forward =
      2 * visible_pairs(problem) * static_cast<double>(problem.qk_dim + problem.v_dim);
  return pass == Pass::kForward ? forward : 2.5 * forward;
}

std::string to_string(const Problem& problem) {
  std::ostringstream text;
  text << name(problem.dtype) << " B" << problem.batch << " H"
       << pair_or_one(problem.q_heads, problem.kv_heads, '/') << " L"
       << pair_or_one(problem.q_len, problem.kv_len, 'x') << " D"
       << pair_or_one(problem.qk_dim, problem.v_dim, '/');
  if (problem.causal == Causal::kUpperLeft) text << " causal";
  if (problem.causal == Causal::kLowerRight) text << " causal(lower-right)";
  if (problem.window.left >= 0 || problem.window.right >= 0)
    text << " window(" << problem.window.left << "," << problem.window.right << ")";
  if (problem.mask != MaskKind::kNone)
    text << " mask(" << name(problem.mask_dtype)
         << (problem.mask_varies_by_query ? ")" : ", key padding)");
  if (problem.softcap > 0) text << " softcap=" << problem.softcap;
  if (problem.has_sinks) text << " sinks";
  if (problem.dropout.is_active()) text << " dropout=" << problem.dropout.probability;
  return text.str();
}

}  // namespace sdpa
