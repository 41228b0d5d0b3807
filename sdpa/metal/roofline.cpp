// SPDX-License-Identifier: MIT
//
// The model. A core issues one instruction a cycle to each of its four SIMD units of 32 lanes, so
// work adds up in lane cycles, 128 a core and cycle:
//
//   multiply-add in a matrix    128 / (110 or 120), of 512 in an instruction: the best published
//                               kernels keep 86 % (M1, M2) and 94 % (M3, M4) of the peak busy
//   exponential                 4
//   shuffle                     16 for a SIMD group: 256 bytes a cycle and core
//   score                       6 or 9 plain instructions: scale, maximum or delta, difference, sum
//   four random words           240: ten rounds of four 32-bit products (4 each) and eight others
//
// A device is full with 24 SIMD groups a core; fewer use it in proportion. Memory is busy beside
// arithmetic, so the longer of the two counts. Not modelled: caches, registers, the last wave.
#include "sdpa/metal/roofline.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <iomanip>
#include <set>
#include <sstream>
#include <stdexcept>

#include "sdpa/metal/specialization.h"

namespace sdpa::metal {
namespace {

constexpr double kSide = 8, kLanes = 32;
constexpr double kMultiplyAdds = 512;  ///< of a matrix instruction
constexpr double kMatrixShareOld = 0.86, kMatrixShare = 0.94;
constexpr int kFamilyOfM3 = 9;
constexpr double kExponentialCycles = 4, kShuffleCycles = 16, kDropoutCycles = 240;
constexpr double kForwardScoreInstructions = 6, kBackwardScoreInstructions = 9;
constexpr double kGroupsToFill = 24;

constexpr std::array kChips{
    Chip{"m1", 7, 8, 2.6, 68},
    Chip{"m1-pro", 7, 16, 5.3, 200},
    Chip{"m1-max", 7, 32, 10.6, 400},
    Chip{"m1-ultra", 7, 64, 21.2, 800},
    Chip{"m2", 8, 10, 3.6, 100},
    Chip{"m2-pro", 8, 19, 6.8, 200},
    Chip{"m2-max", 8, 38, 13.6, 400},
    Chip{"m2-ultra", 8, 76, 27.2, 800},
    Chip{"m3", 9, 10, 3.6, 100},
    Chip{"m3-pro", 9, 18, 7.4, 150},
    Chip{"m3-max", 9, 40, 14.2, 400},
    Chip{"m3-ultra", 9, 80, 28, 819},
    Chip{"m4", 9, 10, 3.6, 120},
    Chip{"m4-pro", 9, 20, 9.2, 273},
    Chip{"m4-max", 9, 40, 18.4, 410},
    Chip{"m5", 10, 10, 4.2, 154},
    Chip{"m5-pro", 10, 20, 8.4, 307, true},
    Chip{"m5-max", 10, 40, 16.8, 460, true},
};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// ---- Counting ----

/// One side of the scores is owned, a few rows a SIMD group; the other is walked in tiles.
struct Sides {
  std::int64_t owned, walked;  ///< how long they are
  std::int64_t before, after;  ///< row i meets i - before ... i + after of the other side
};

Sides query_side(const AttentionParams& p) {
  return {p.q_len, p.kv_len, p.left - p.diagonal, p.right + p.diagonal};
}

Sides key_side(const AttentionParams& p) {
  return {p.kv_len, p.q_len, p.right + p.diagonal, p.left - p.diagonal};
}

/// Tiles of `step` that blocks of `rows` meet, summed over all blocks.
double tiles_walked(const Sides& s, std::int64_t rows, std::int64_t step) {
  double sum = 0;
  for (std::int64_t first = 0; first < s.owned; first += rows) {
    const std::int64_t last = std::min(first + rows, s.owned) - 1;
    const std::int64_t from = std::max<std::int64_t>(first - s.before, 0);
    const std::int64_t to = std::min(last + s.after + 1, s.walked);
    if (from < to) sum += static_cast<double>(ceil_div(to, step) - from / step);
  }
  return sum;
}

/// What a kernel does with each tile that a SIMD group walks.
struct PerTile {
  double products = 0, exponentials = 0, shuffles = 0;
};

/// Draws of dropout and the shuffles that share them: one for two fragments.
double draws(const Specialization& s) {
  return s.has(kDropout) ? static_cast<double>(ceil_div(s.tile, 2)) : 0;
}

PerTile per_tile(const Specialization& s) {
  const double tile = s.tile, both = s.qk + s.v;
  const double out_qk = static_cast<double>(ceil_div(s.qk, s.chunks));
  const double out_v = static_cast<double>(ceil_div(s.v, s.chunks));
  const double exponentials = kLanes * 2 * tile;
  if (s.kernel == "forward" || s.kernel == "split_keys")
    return {tile * (s.qk + out_v), exponentials + kLanes, 2 + draws(s)};
  if (s.kernel == "grad_query") return {tile * (both + out_qk), exponentials, draws(s)};
  if (s.kernel != "grad_key_value") return {tile * both, exponentials, draws(s)};
  const double results = (s.has(kGradKey) ? out_qk : 0) + (s.has(kGradValue) ? out_v : 0);
  return {tile * (both + results), exponentials, 2 * draws(s)};
}

void add_tiles(Work& work, const Specialization& s, double tiles) {
  const PerTile each = per_tile(s);
  work.matrix_multiplies += tiles * each.products;
  work.exponentials += tiles * each.exponentials;
  work.shuffles += tiles * each.shuffles;
  const bool is_forward = s.kernel == "forward" || s.kernel == "split_keys";
  work.plain_instructions += tiles * s.tile * kSide * kSide *
                             (is_forward ? kForwardScoreInstructions : kBackwardScoreInstructions);
  work.dropout_blocks += tiles * draws(s) * kLanes;
}

/// The kernels that own rows of one side: forward, grad_query, grad_key_value, delta_of_scores.
void count_walk(Work& work, const Specialization& s, const AttentionParams& p) {
  const bool owns_keys = s.kernel == "grad_key_value";
  const Sides sides = owns_keys ? key_side(p) : query_side(p);
  const std::int64_t step = s.tile * static_cast<std::int64_t>(kSide);
  const double heads = static_cast<double>(p.batch * p.q_heads);
  add_tiles(work, s, heads * s.chunks * tiles_walked(sides, 8, step));
  if (s.has(kStaged))
    work.barriers = 2 * heads * s.chunks * tiles_walked(sides, 8L * s.groups, step);
  const std::int64_t blocks = ceil_div(sides.owned, 8);
  const std::int64_t launched = ceil_div(blocks, s.groups) * s.groups;
  if (s.kernel == "forward") work.shuffles += 2 * heads * s.chunks * static_cast<double>(launched);
  if (s.kernel == "delta_of_scores") work.shuffles += 2 * heads * static_cast<double>(blocks);
}

/// Split keys: eight rows of all heads of a group walk the keys together, each part on its own.
void count_splits(Work& work, const Specialization& s, const AttentionParams& p) {
  const std::int64_t group = p.q_heads / p.kv_heads, step = s.tile * 8L;
  const double heads = static_cast<double>(p.batch * p.kv_heads * s.chunks);
  const std::int64_t rows = group * p.q_len;
  double tiles = 0;
  for (std::int64_t first = 0; first < rows; first += 8) {
    const std::int64_t last = std::min<std::int64_t>(first + 8, rows) - 1;
    const bool one_head = first / p.q_len == last / p.q_len;
    const std::int64_t low = one_head ? first % p.q_len : 0;
    const std::int64_t high = one_head ? last % p.q_len : p.q_len - 1;
    const Sides sides = query_side(p);
    const std::int64_t from = std::max<std::int64_t>(low - sides.before, 0);
    const std::int64_t to = std::min<std::int64_t>(high + sides.after + 1, p.kv_len);
    if (from < to) tiles += static_cast<double>(ceil_div(to, step) - from / step);
  }
  add_tiles(work, s, heads * tiles);
  work.shuffles += 2 * heads * static_cast<double>(ceil_div(rows, 8) * p.splits);
}

/// The mask's gradient: each tile of the mask sums over all heads and rows that share it.
void count_mask(Work& work, const Specialization& s, const AttentionParams& p) {
  const double heads = static_cast<double>(p.batch * p.q_heads);
  add_tiles(work, s, heads * tiles_walked(query_side(p), 8, s.tile * 8L));
}

double elements(const AttentionParams& p, Role role) {
  const double rows = static_cast<double>(p.batch * p.q_heads * p.q_len);
  const double keys = static_cast<double>(p.batch * p.kv_heads * p.kv_len);
  switch (role) {
    case Role::kQuery:
    case Role::kGradQuery:
      return rows * static_cast<double>(p.qk_dim);
    case Role::kOut:
    case Role::kGradOut:
      return rows * static_cast<double>(p.v_dim);
    case Role::kKey:
    case Role::kGradKey:
      return keys * static_cast<double>(p.qk_dim);
    case Role::kValue:
    case Role::kGradValue:
      return keys * static_cast<double>(p.v_dim);
    case Role::kLse:
    case Role::kDelta:
    case Role::kGradLse:
      return rows;
    case Role::kMask:
    case Role::kGradMask:
      return static_cast<double>(p.mask_batches * p.mask_heads * p.mask_rows * p.mask_columns);
    default:
      return 0;
  }
}

double bytes_of(const Problem& s, const Plan& plan, Role role) {
  for (const Scratch& scratch : plan.scratch)
    if (scratch.role == role) return static_cast<double>(scratch.bytes);
  const bool is_single = role == Role::kLse || role == Role::kGradLse || role == Role::kGradMask;
  const DType dtype = role == Role::kMask ? s.mask_dtype : is_single ? DType::kFloat32 : s.dtype;
  return elements(plan.params, role) * static_cast<double>(size_bytes(dtype));
}

double lane_cycles(const Work& work, const Chip& chip) {
  const double share = chip.family < kFamilyOfM3 ? kMatrixShareOld : kMatrixShare;
  return work.matrix_multiplies * kMultiplyAdds / share + work.exponentials * kExponentialCycles +
         work.shuffles * kShuffleCycles + work.plain_instructions +
         work.dropout_blocks * kDropoutCycles;
}

std::string plain_name(std::string_view name) {
  std::string text;
  for (char c : name)
    text +=
        c == '_' || c == ' ' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace

std::span<const Chip> chips() { return kChips; }

const Chip& chip_named(std::string_view name) {
  std::string known;
  for (const Chip& chip : kChips) {
    if (chip.name == plain_name(name)) return chip;
    known += (known.empty() ? "" : ", ") + std::string(chip.name);
  }
  throw std::invalid_argument("unknown chip '" + std::string(name) + "'; known are " + known);
}

DeviceInfo device_of(const Chip& chip) {
  return {.name = std::string(chip.name), .family = chip.family, .cores = chip.cores};
}

Work work_of(const Problem& problem, const Plan& plan, const Dispatch& dispatch) {
  const Specialization s = parse_host_name(dispatch.kernel);
  const AttentionParams& p = plan.params;
  Work work;
  if (s.kernel == "split_keys")
    count_splits(work, s, p);
  else if (s.kernel == "grad_mask")
    count_mask(work, s, p);
  else if (s.kernel == "merge")
    work.exponentials = static_cast<double>(dispatch.grid.count() * p.splits) *
                        (kLanes + static_cast<double>(p.v_dim));
  else if (s.kernel == "forward" || s.kernel == "grad_query" || s.kernel == "grad_key_value" ||
           s.kernel == "delta_of_scores")
    count_walk(work, s, p);
  for (Role role : std::set<Role>(dispatch.buffers.begin(), dispatch.buffers.end()))
    work.memory_bytes += bytes_of(problem, plan, role);
  work.simd_groups = static_cast<double>(dispatch.grid.count() * dispatch.group.count()) / kLanes;
  return work;
}

Estimate estimate(const Work& work, const Chip& chip) {
  const double full = std::min(1.0, work.simd_groups / (kGroupsToFill * chip.cores));
  const double lane_cycles_a_ms = chip.teraflops * 1e9 / 2 * full;
  const double arithmetic = lane_cycles(work, chip) / lane_cycles_a_ms;
  const double memory = work.memory_bytes / (chip.gigabytes_per_second * 1e6);
  return {.milliseconds = std::max(arithmetic, memory), .waits_for_memory = memory > arithmetic};
}

double estimate_ms(const Problem& problem, const Plan& plan, const Chip& chip) {
  double sum = 0;
  for (const Dispatch& dispatch : plan.dispatches)
    sum += estimate(work_of(problem, plan, dispatch), chip).milliseconds;
  return sum;
}

std::string explain_estimate(const Problem& problem, const Plan& plan, const Chip& chip) {
  std::ostringstream text;
  text << std::setprecision(3);
  for (const Dispatch& dispatch : plan.dispatches) {
    const Estimate each = estimate(work_of(problem, plan, dispatch), chip);
    text << parse_host_name(dispatch.kernel).kernel << ": at least " << each.milliseconds
         << " ms (estimate; bound by " << (each.waits_for_memory ? "memory" : "arithmetic")
         << ")\n";
  }
  text << "all on " << chip.name << ": at least " << estimate_ms(problem, plan, chip)
       << " ms (estimate from counts and published figures; not measured)\n";
  if (chip.is_scaled) text << "no peak of it is published; it is scaled by the number of cores\n";
  return text.str();
}

}  // namespace sdpa::metal
