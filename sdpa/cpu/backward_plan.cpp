// SPDX-License-Identifier: MIT
#include "sdpa/cpu/backward_plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <sstream>

namespace sdpa::cpu {
namespace {

/// Enough tasks for 16 threads to share evenly; more would only add private buffers.
constexpr std::int64_t kWantedTasks = 32;

/// A task covers at least this many keys, so that its query gradients are worth their reduction.
constexpr std::int64_t kKeysPerPart = 256;

/// Private gradients that may live at once. Long problems with few heads go through in waves.
constexpr std::int64_t kPrivateBytes = std::int64_t{128} << 20;

/// A cut of the units into runs of equal work; `blocks[u]` is what unit u sees.
std::vector<std::int64_t> cut_units(const std::vector<BlockRange>& blocks, std::int64_t count) {
  std::vector<double> sum{0};
  for (const BlockRange& range : blocks)
    sum.push_back(sum.back() + 1 + static_cast<double>(range.last - range.first));
  std::vector<std::int64_t> cuts{0};
  for (std::int64_t part = 1; part < count; ++part) {
    const double wanted = sum.back() * static_cast<double>(part) / static_cast<double>(count);
    const auto unit = std::lower_bound(sum.begin(), sum.end(), wanted) - sum.begin();
    if (unit > cuts.back() && unit < static_cast<std::int64_t>(blocks.size())) cuts.push_back(unit);
  }
  cuts.push_back(static_cast<std::int64_t>(blocks.size()));
  return cuts;
}

/// The blocks that units [first, last) see together.
BlockRange join(const std::vector<BlockRange>& blocks, std::int64_t first, std::int64_t last) {
  BlockRange all{.first = blocks.front().last, .last = 0};
  bool any = false;
  for (std::int64_t unit = first; unit < last; ++unit) {
    const BlockRange& range = blocks[static_cast<std::size_t>(unit)];
    if (range.first >= range.last) continue;
    all =
        any ? BlockRange{std::min(all.first, range.first), std::max(all.last, range.last)} : range;
    any = true;
  }
  return any ? all : BlockRange{};
}

/// Pairs of a unit and a block of keys that units [first, last) make with blocks [from, to).
std::int64_t work(const std::vector<BlockRange>& blocks, std::int64_t first, std::int64_t last,
                  std::int64_t from, std::int64_t to) {
  std::int64_t sum = 0;
  for (std::int64_t unit = first; unit < last; ++unit) {
    const BlockRange& range = blocks[static_cast<std::size_t>(unit)];
    sum += std::max<std::int64_t>(std::min(range.last, to) - std::max(range.first, from), 0);
  }
  return sum;
}

std::int64_t work(const std::vector<BlockRange>& blocks, const BackwardPart& part) {
  return work(blocks, part.first_unit, part.last_unit, part.first_block, part.last_block);
}

/// The block up to which units [first, last) find `share` of their work, as near as blocks allow.
std::int64_t cut_blocks(const std::vector<BlockRange>& blocks, std::int64_t first,
                        std::int64_t last, const BlockRange& range, double share) {
  const auto all = static_cast<double>(work(blocks, first, last, range.first, range.last));
  const auto off = [&](std::int64_t block) {
    const std::int64_t before = work(blocks, first, last, range.first, block);
    return std::abs(static_cast<double>(before) - share * all);
  };
  std::int64_t block = range.first;
  while (block < range.last && off(block + 1) < off(block)) ++block;
  return block;
}

/// Cuts a (batch, key head) into about `count` tasks, along queries and keys. A query part has
/// private gradients of key and value, a key part one of query for each head of the group, so
/// 2 * query parts + group * key parts is made small.
void cut(const Problem& s, const std::vector<BlockRange>& blocks, std::int64_t count,
         BackwardPlan& plan) {
  const double wanted = static_cast<double>(count);
  std::int64_t key_parts =
      std::clamp<std::int64_t>(std::llround(std::sqrt(2 * wanted / static_cast<double>(s.group()))),
                               1, std::max<std::int64_t>(s.kv_len / kKeysPerPart, 1));
  const std::int64_t query_parts = std::min(ceil_div(count, key_parts), plan.units);
  key_parts = std::clamp<std::int64_t>(ceil_div(count, query_parts), 1,
                                       std::max<std::int64_t>(s.kv_len / kKeysPerPart, 1));
  plan.query_slots = key_parts;
  const std::vector<std::int64_t> cuts = cut_units(blocks, query_parts);
  for (std::size_t n = 0; n + 1 < cuts.size(); ++n) {
    const BlockRange range = join(blocks, cuts[n], cuts[n + 1]);
    const auto cut_at = [&](std::int64_t k) {
      if (k == 0) return range.first;
      if (k == key_parts) return range.last;
      return cut_blocks(blocks, cuts[n], cuts[n + 1], range,
                        static_cast<double>(k) / static_cast<double>(key_parts));
    };
    for (std::int64_t k = 0; k < key_parts; ++k) {
      BackwardPart part{.first_unit = cuts[n],
                        .last_unit = cuts[n + 1],
                        .first_block = cut_at(k),
                        .last_block = cut_at(k + 1),
                        .key_offset = plan.key_rows,
                        .query_slot = k};
      plan.key_rows += (part.last_block - part.first_block) * kKeyBlock;
      plan.parts.push_back(part);
    }
  }
  std::ranges::stable_sort(plan.parts, std::ranges::greater{},
                           [&](const BackwardPart& part) { return work(blocks, part); });
}

}  // namespace

BlockRange visible_blocks(const Problem& s, std::int64_t row, std::int64_t rows) {
  const std::int64_t first = s.first_key(row / s.group());
  const std::int64_t last = std::min(s.last_key((row + rows - 1) / s.group()), s.kv_len);
  if (first >= last) return {};
  return {first / kKeyBlock, ceil_div(last, kKeyBlock)};
}

BackwardPlan plan_backward(const Problem& s) {
  BackwardPlan plan;
  const std::int64_t rows = s.q_len * s.group();
  plan.unit_rows = padded_columns(ceil_div(rows, ceil_div(rows, kUnitRows)));
  plan.units = ceil_div(rows, plan.unit_rows);
  std::vector<BlockRange> seen;
  for (std::int64_t row = 0; row < rows; row += plan.unit_rows)
    seen.push_back(visible_blocks(s, row, std::min(plan.unit_rows, rows - row)));
  const std::int64_t heads = s.batch * s.kv_heads;
  cut(s, seen, ceil_div(kWantedTasks, heads), plan);
  const std::int64_t columns = padded_columns(s.qk_dim) + padded_columns(s.v_dim);
  const std::int64_t slots = plan.query_slots > 1 ? plan.query_slots * rows : 0;
  const std::int64_t bytes = 4 * (plan.key_rows * columns + slots * padded_columns(s.qk_dim));
  plan.heads_per_wave =
      std::clamp<std::int64_t>(kPrivateBytes / std::max<std::int64_t>(bytes, 1), 1, heads);
  return plan;
}

std::string to_string(const BackwardPlan& plan) {
  std::ostringstream text;
  text << plan.unit_rows << "-row units, " << plan.parts.size()
       << (plan.is_split() ? " parts" : " part") << " a key head";
  if (plan.query_slots > 1) text << ", keys in " << plan.query_slots;
  return text.str();
}

}  // namespace sdpa::cpu
