// SPDX-License-Identifier: MIT
//
// Sizes of a plan, in SIMD groups and 8x8 fragments:
//
//   tile     how many rows are walked at a time: 32 keys where the results are narrow, fewer where
//            the unrolled loop or threadgroup memory would grow too large
//   groups   4 SIMD groups a threadgroup: 32 rows, which is also a tile of the classified mask
//   chunks   results wider than registers hold are split over threadgroups: 256 columns of one
//            result (64 registers a lane of 128), 128 of each of two
//   splits   where rows do not fill the device, several SIMD groups share the keys of one row
#include "sdpa/metal/plan.h"

#include <algorithm>
#include <sstream>

#include "sdpa/metal/kernel_source.h"
#include "sdpa/metal/specialization.h"

namespace sdpa::metal {
namespace {

constexpr std::int64_t kSide = 8;
constexpr std::int64_t kSimdWidth = 32;
constexpr int kMaxGroups = 4;
constexpr int kMaxOneResult = 32;   ///< fragments of one result: 64 registers of 128
constexpr int kMaxTwoResults = 16;  ///< fragments of each of two results
constexpr int kFullTile = 4;        ///< 32 rows
constexpr int kWideResult = 16;     ///< results wider than this get half the tile
constexpr int kDirectFamily = 9;  ///< Apple9: registers, threadgroup memory and cache share a pool
constexpr std::int64_t kGroupsToFill = 16;  ///< SIMD groups a core needs to hide latency
constexpr std::int64_t kShortRow = 128;     ///< keys up to which delta is computed exactly
constexpr std::int64_t kOpen = std::int64_t{1} << 40;  ///< the open side of a window

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

int fragments(std::int64_t dim) { return static_cast<int>(ceil_div(dim, kSide)); }

int kind_of(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return kKindBool;
    case DType::kFloat32:
      return kKindFloat32;
    case DType::kFloat16:
      return kKindFloat16;
    default:
      return kKindBFloat16;
  }
}

// ---- Parameters ----

RowStrides row_strides(const TensorView& view) {
  return {.batch = view.strides[0], .head = view.strides[1], .row = view.strides[2]};
}

MaskStrides mask_strides(const TensorView& view) {
  return {.batch = view.strides[0],
          .head = view.strides[1],
          .row = view.strides[2],
          .column = view.strides[3]};
}

/// How far a view reaches in a dimension: 1 where it broadcasts.
std::int64_t reach(const TensorView& view, std::size_t dim) {
  return view.is_present() && view.strides[dim] != 0 ? view.shape[dim] : 1;
}

void set_band(AttentionParams& p, const Problem& s) {
  p.diagonal = s.diagonal();
  p.left = s.window.left < 0 ? kOpen : s.window.left;
  p.right = s.window.right < 0 ? kOpen : s.window.right;
  if (s.causal != Causal::kNone) p.right = std::min<std::int64_t>(p.right, 0);
}

/// How far the mask, or a gradient of it that broadcasts less, reaches; and its classified tiles.
void set_mask_reach(AttentionParams& p, const TensorView& mask) {
  p.mask_batches = reach(mask, 0);
  p.mask_heads = reach(mask, 1);
  p.mask_rows = reach(mask, 2);
  p.mask_columns = reach(mask, 3);
  p.class_rows = ceil_div(p.mask_rows, kClassTile);
  p.class_columns = ceil_div(p.mask_columns, kClassTile);
  const std::int64_t tiles = p.class_rows * p.class_columns;
  p.class_head = p.mask_heads == 1 ? 0 : tiles;
  p.class_batch = p.mask_batches == 1 ? 0 : tiles * p.mask_heads;
}

/// What both passes share.
template <typename Tensors>
Plan start_plan(const Problem& s, const Tensors& t) {
  Plan plan;
  AttentionParams& p = plan.params;
  p.batch = s.batch;
  p.q_heads = s.q_heads;
  p.kv_heads = s.kv_heads;
  p.q_len = s.q_len;
  p.kv_len = s.kv_len;
  p.qk_dim = s.qk_dim;
  p.v_dim = s.v_dim;
  set_band(p, s);
  p.mask = mask_strides(t.mask);
  set_mask_reach(p, t.mask);
  set_dropout(p, s.dropout);
  p.sinks_kind = s.has_sinks ? kind_of(t.sinks.dtype) : kKindNone;
  p.sinks_stride = t.sinks.strides[1];
  p.query = row_strides(t.query);
  p.key = row_strides(t.key);
  p.value = row_strides(t.value);
  p.out = row_strides(t.out);
  p.lse = row_strides(t.lse);
  plan.scalars = {.scale = static_cast<float>(s.scale),
                  .softcap = static_cast<float>(s.softcap),
                  .dropout_rescale = static_cast<float>(s.dropout.rescale())};
  return plan;
}

// ---- Specializations ----

bool is_ragged(std::int64_t dim, int chunks) {
  return dim % kSide != 0 || fragments(dim) % chunks != 0;
}

/// How many fragments wide the results of a kernel are, and over how many registers' worth.
struct Width {
  int results, limit;
};

Width width_of(const std::string& kernel, const Problem& s) {
  if (kernel == "grad_mask" || kernel == "delta_of_scores") return {1, kMaxOneResult};
  if (kernel == "grad_query") return {fragments(s.qk_dim), kMaxOneResult};
  if (kernel == "grad_key_value")
    return {std::max(fragments(s.qk_dim), fragments(s.v_dim)), kMaxTwoResults};
  return {fragments(s.v_dim), kMaxOneResult};
}

int tile_of(const std::string& kernel, int result_fragments) {
  if (kernel == "grad_key_value") return result_fragments > kWideResult / 2 ? 1 : 2;
  return result_fragments > kWideResult ? kFullTile / 2 : kFullTile;
}

int common_features(const Problem& s) {
  int features = s.mask == MaskKind::kNone ? kKindNone : kind_of(s.mask_dtype);
  if (s.causal != Causal::kNone || s.window.left >= 0 || s.window.right >= 0) features |= kBand;
  if (s.softcap > 0) features |= kSoftcap;
  if (s.dropout.is_active()) features |= kDropout;
  return features;
}

/// Chooses staging: on GPUs before Apple9, the largest tile that leaves room for a second
/// threadgroup; none where not even the smallest fits.
void stage_if_better(Specialization& spec, const DeviceInfo& device) {
  if (device.family >= kDirectFamily) return;
  Specialization staged = spec;
  staged.features |= kStaged;
  const std::int64_t room = device.threadgroup_bytes * 6 / 10;
  while (staged.tile > 1 && threadgroup_bytes(staged) > room) staged.tile /= 2;
  if (threadgroup_bytes(staged) <= device.threadgroup_bytes) spec = staged;
}

int groups_of(const DeviceInfo& device) {
  return static_cast<int>(std::clamp<std::int64_t>(device.max_threads / kSimdWidth, 1, kMaxGroups));
}

Specialization specialize(const std::string& kernel, const Problem& s, const DeviceInfo& device,
                          int more_features) {
  const Width width = width_of(kernel, s);
  const int chunks = static_cast<int>(ceil_div(width.results, width.limit));
  Specialization spec{.kernel = kernel,
                      .dtype = s.dtype,
                      .qk = fragments(s.qk_dim),
                      .v = fragments(s.v_dim),
                      .chunks = chunks,
                      .tile = tile_of(kernel, static_cast<int>(ceil_div(width.results, chunks))),
                      .groups = groups_of(device),
                      .features = common_features(s) | more_features};
  if (is_ragged(s.qk_dim, chunks) || is_ragged(s.v_dim, chunks)) spec.features |= kRaggedDim;
  return spec;
}

/// A small kernel: one SIMD group a row or tile, whatever the dimensions.
Specialization plain(const std::string& kernel, const Problem& s, int groups, int features) {
  return {.kernel = kernel, .dtype = s.dtype, .groups = groups, .features = features};
}

Dispatch launch(const Specialization& spec, Extent grid, std::vector<Role> buffers) {
  return {.kernel = host_name(spec),
          .specialization = instantiation(spec),
          .grid = grid,
          .group = {.x = kSimdWidth * spec.groups},
          .threadgroup_bytes = threadgroup_bytes(spec),
          .buffers = std::move(buffers)};
}

/// The role itself where the tensor takes part, else one that is bound anyway and never touched.
Role or_spare(bool is_present, Role role, Role spare = Role::kQuery) {
  return is_present ? role : spare;
}

/// Adds the mask's pre-pass; returns the feature that makes a kernel use it.
int add_classes(Plan& plan, const Problem& s) {
  if (s.mask == MaskKind::kNone) return 0;
  const AttentionParams& p = plan.params;
  plan.scratch.push_back(
      {Role::kClasses, p.class_rows * p.class_columns * p.mask_heads * p.mask_batches});
  plan.dispatches.push_back(
      launch(plain("classify", s, 1, kind_of(s.mask_dtype)),
             {.x = p.class_columns, .y = p.class_rows, .z = p.mask_heads * p.mask_batches},
             {Role::kMask, Role::kClasses, Role::kParams}));
  return kClasses;
}

// ---- Forward ----

int forward_features(const ForwardTensors& t) {
  return (t.sinks.is_present() ? kSinks : 0) | (t.lse.is_present() ? kLse : 0);
}

/// How many SIMD groups split one row's keys so that the device is filled.
std::int64_t splits_to_fill(std::int64_t units, std::int64_t kv_len, std::int64_t tile_keys,
                            const DeviceInfo& device) {
  const std::int64_t wanted =
      ceil_div(device.cores * kGroupsToFill, std::max<std::int64_t>(units, 1));
  return std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(kv_len / (2 * tile_keys), 1));
}

/// SIMD groups of the plain forward kernel.
std::int64_t forward_units(const Problem& s) {
  return s.batch * s.q_heads * ceil_div(s.q_len, kSide);
}

/// Split keys pay where rows leave more than half of the device idle, or where a group's heads
/// share keys and fit into one SIMD group.
bool prefers_splits(const Problem& s, const DeviceInfo& device) {
  const bool shares_keys = s.group() > 1 && s.q_len < kSide;
  const bool leaves_idle =
      2 * forward_units(s) < device.cores * kGroupsToFill && s.kv_len >= 4 * kFullTile * kSide;
  return shares_keys || leaves_idle;
}

// ---- Backward ----

Role spare_mask(const Problem& s) { return or_spare(s.mask != MaskKind::kNone, Role::kMask); }

Role spare_classes(const Problem& s) { return or_spare(s.mask != MaskKind::kNone, Role::kClasses); }

/// Whether delta must come from the probabilities: see delta.h.
bool needs_exact_delta(const Problem& s) {
  return s.dtype != DType::kFloat32 && s.kv_len <= kShortRow;
}

void add_delta(Plan& plan, const Problem& s, const BackwardTensors& t, const DeviceInfo& device,
               int classes) {
  plan.scratch.push_back({Role::kDelta, s.batch * s.q_heads * s.q_len * 4});
  const int features = t.grad_lse.is_present() ? kGradLse : 0;
  const Role grad_lse = or_spare(t.grad_lse.is_present(), Role::kGradLse, Role::kLse);
  if (needs_exact_delta(s)) {
    const Specialization spec = specialize("delta_of_scores", s, device, features | classes);
    plan.dispatches.push_back(
        launch(spec, {.x = ceil_div(s.q_len, spec.groups * kSide), .y = s.q_heads, .z = s.batch},
               {Role::kQuery, Role::kKey, Role::kValue, Role::kGradOut, Role::kLse, grad_lse,
                spare_mask(s), spare_classes(s), Role::kDelta, Role::kParams, Role::kScalars}));
    return;
  }
  const Specialization spec = plain("delta_of_rows", s, groups_of(device), features);
  plan.dispatches.push_back(
      launch(spec, {.x = ceil_div(s.q_len, spec.groups), .y = s.q_heads, .z = s.batch},
             {Role::kOut, Role::kGradOut, grad_lse, Role::kDelta, Role::kParams}));
}

void add_grad_query(Plan& plan, const Problem& s, const DeviceInfo& device, int classes) {
  Specialization spec = specialize("grad_query", s, device, classes);
  stage_if_better(spec, device);
  plan.dispatches.push_back(launch(
      spec,
      {.x = ceil_div(s.q_len, spec.groups * kSide), .y = s.q_heads * spec.chunks, .z = s.batch},
      {Role::kQuery, Role::kKey, Role::kValue, Role::kGradOut, Role::kLse, Role::kDelta,
       spare_mask(s), spare_classes(s), Role::kGradQuery, Role::kParams, Role::kScalars}));
}

void add_grad_key_value(Plan& plan, const Problem& s, const BackwardTensors& t,
                        const DeviceInfo& device, int classes) {
  const bool key = t.grad_key.is_present(), value = t.grad_value.is_present();
  Specialization spec = specialize("grad_key_value", s, device,
                                   classes | (key ? kGradKey : 0) | (value ? kGradValue : 0));
  stage_if_better(spec, device);
  plan.dispatches.push_back(launch(
      spec,
      {.x = ceil_div(s.kv_len, spec.groups * kSide), .y = s.kv_heads * spec.chunks, .z = s.batch},
      {Role::kQuery, Role::kKey, Role::kValue, Role::kGradOut, Role::kLse, Role::kDelta,
       spare_mask(s), spare_classes(s), or_spare(key, Role::kGradKey, Role::kGradValue),
       or_spare(value, Role::kGradValue, Role::kGradKey), Role::kParams, Role::kScalars}));
}

void add_grad_mask(Plan& plan, const Problem& s, const DeviceInfo& device, int classes) {
  Specialization spec = specialize("grad_mask", s, device, classes);
  spec.groups = 1;
  const AttentionParams& p = plan.params;
  const std::int64_t step = spec.tile * kSide;
  plan.dispatches.push_back(
      launch(spec,
             {.x = ceil_div(p.mask_columns, step),
              .y = ceil_div(p.mask_rows, kSide),
              .z = p.mask_heads * p.mask_batches},
             {Role::kQuery, Role::kKey, Role::kValue, Role::kGradOut, Role::kLse, Role::kDelta,
              Role::kMask, Role::kClasses, Role::kGradMask, Role::kParams, Role::kScalars}));
}

// ---- Views without data ----

TensorView dense_view(DType dtype, std::initializer_list<std::int64_t> shape) {
  return dense(nullptr, dtype, shape);
}

DType statistics_type() { return DType::kFloat32; }

/// The mask of a problem that is only described: one for all batches and heads.
TensorView dense_mask(const Problem& s) {
  TensorView mask =
      dense_view(s.mask_dtype, {1, 1, s.mask_varies_by_query ? s.q_len : 1, s.kv_len});
  mask.strides[0] = mask.strides[1] = 0;
  if (!s.mask_varies_by_query) mask.strides[2] = 0;
  mask.shape = {s.batch, s.q_heads, s.q_len, s.kv_len};
  return mask;
}

}  // namespace

void set_dropout(AttentionParams& p, const Dropout& dropout) {
  p.dropout_threshold = dropout.threshold();
  p.seed_low = static_cast<std::uint32_t>(dropout.seed);
  p.seed_high = static_cast<std::uint32_t>(dropout.seed >> 32);
  p.dropout_offset = dropout.offset;
  p.first_head = dropout.first_head;
}

std::string_view name(Role role) {
  constexpr std::string_view names[] = {
      "query",    "key",      "value",       "mask",        "sinks",      "out",       "lse",
      "grad_out", "grad_lse", "grad_query",  "grad_key",    "grad_value", "grad_mask", "grad_sinks",
      "delta",    "classes",  "partial_out", "partial_lse", "keep",       "params",    "scalars"};
  return names[static_cast<std::size_t>(role)];
}

std::vector<std::string> refusals(const Problem& s, Pass, const DeviceInfo& device) {
  std::vector<std::string> reasons;
  const auto refuse = [&](auto&&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    reasons.push_back(text.str());
  };
  if (s.dtype == DType::kFloat64)
    refuse("Metal has no float64; float32, float16 and bfloat16 tensors can run.");
  if (s.mask != MaskKind::kNone && s.mask_dtype == DType::kFloat64)
    refuse(
        "Metal has no float64, which attn_mask has; bool, float32, float16 and bfloat16 can run.");
  if (device.family < 7)
    refuse("The kernels need SIMD-group matrices, which Apple", device.family,
           " GPUs lack; Apple7 (M1) and later have them.");
  if (device.max_threads < kSimdWidth)
    refuse("A kernel needs ", kSimdWidth, " threads a threadgroup, but the limit is ",
           device.max_threads, ".");
  if (s.q_heads * s.batch * ceil_div(s.q_len, kSide) >= std::int64_t{1} << 32)
    refuse("A launch has at most 2^32 threadgroups; this one has batch ", s.batch, ", ", s.q_heads,
           " heads and ", s.q_len, " queries.");
  return reasons;
}

Plan plan_forward(const Problem& s, const ForwardTensors& t, const DeviceInfo& device) {
  return prefers_splits(s, device) ? plan_decode(s, t, device) : plan_tiles(s, t, device);
}

Plan plan_tiles(const Problem& s, const ForwardTensors& t, const DeviceInfo& device) {
  Plan plan = start_plan(s, t);
  const int classes = add_classes(plan, s);
  Specialization spec = specialize("forward", s, device, forward_features(t) | classes);
  stage_if_better(spec, device);
  plan.dispatches.push_back(launch(
      spec,
      {.x = ceil_div(s.q_len, spec.groups * kSide), .y = s.q_heads * spec.chunks, .z = s.batch},
      {Role::kQuery, Role::kKey, Role::kValue, or_spare(t.mask.is_present(), Role::kMask),
       or_spare(t.sinks.is_present(), Role::kSinks), or_spare(classes != 0, Role::kClasses),
       Role::kOut, or_spare(t.lse.is_present(), Role::kLse, Role::kOut), Role::kParams,
       Role::kScalars}));
  return plan;
}

Plan plan_decode(const Problem& s, const ForwardTensors& t, const DeviceInfo& device) {
  Plan plan = start_plan(s, t);
  const int features = forward_features(t);
  Specialization spec = specialize("split_keys", s, device, features & ~kLse);
  const std::int64_t row_tiles = ceil_div(s.group() * s.q_len, kSide);
  const std::int64_t units = s.batch * s.kv_heads * row_tiles * spec.chunks;
  const std::int64_t tile_keys = spec.tile * kSide;
  AttentionParams& p = plan.params;
  p.splits = splits_to_fill(units, s.kv_len, tile_keys, device);
  p.split_keys = ceil_div(ceil_div(s.kv_len, p.splits), tile_keys) * tile_keys;
  p.splits = ceil_div(s.kv_len, p.split_keys);
  spec.groups = static_cast<int>(std::min<std::int64_t>(spec.groups, p.splits));
  const std::int64_t parts = s.batch * s.q_heads * s.q_len * p.splits;
  plan.scratch = {{Role::kPartialOut, parts * s.v_dim * 4}, {Role::kPartialLse, parts * 4}};
  plan.dispatches.push_back(
      launch(spec,
             {.x = ceil_div(p.splits, spec.groups),
              .y = s.kv_heads * spec.chunks * row_tiles,
              .z = s.batch},
             {Role::kQuery, Role::kKey, Role::kValue, or_spare(t.mask.is_present(), Role::kMask),
              or_spare(t.sinks.is_present(), Role::kSinks), Role::kPartialOut, Role::kPartialLse,
              Role::kParams, Role::kScalars}));
  plan.dispatches.push_back(
      launch(plain("merge", s, 1, features & kLse), {.x = s.q_len, .y = s.q_heads, .z = s.batch},
             {Role::kPartialOut, Role::kPartialLse, Role::kOut,
              or_spare(t.lse.is_present(), Role::kLse, Role::kOut), Role::kParams}));
  return plan;
}

Plan plan_proto(const Problem& s, const ForwardTensors& t, const DeviceInfo&) {
  Plan plan = start_plan(s, t);
  plan.dispatches.push_back(launch(
      plain("proto", s, 1, common_features(s) | forward_features(t)),
      {.x = ceil_div(s.q_len, kSimdWidth), .y = s.q_heads, .z = s.batch},
      {Role::kQuery, Role::kKey, Role::kValue, or_spare(t.mask.is_present(), Role::kMask),
       or_spare(t.sinks.is_present(), Role::kSinks), Role::kOut,
       or_spare(t.lse.is_present(), Role::kLse, Role::kOut), Role::kParams, Role::kScalars}));
  return plan;
}

Plan plan_backward(const Problem& s, const BackwardTensors& t, const DeviceInfo& device) {
  Plan plan = start_plan(s, t);
  AttentionParams& p = plan.params;
  p.grad_out = row_strides(t.grad_out);
  p.grad_lse = row_strides(t.grad_lse);
  p.grad_query = row_strides(t.grad_query);
  p.grad_key = row_strides(t.grad_key);
  p.grad_value = row_strides(t.grad_value);
  p.grad_mask = mask_strides(t.grad_mask);
  p.grad_sinks_stride = t.grad_sinks.strides[1];
  if (t.grad_mask.is_present()) set_mask_reach(p, t.grad_mask);
  const int classes = add_classes(plan, s);
  add_delta(plan, s, t, device, classes);
  if (t.grad_query.is_present()) add_grad_query(plan, s, device, classes);
  if (t.grad_key.is_present() || t.grad_value.is_present())
    add_grad_key_value(plan, s, t, device, classes);
  if (t.grad_mask.is_present()) add_grad_mask(plan, s, device, classes);
  if (t.grad_sinks.is_present())
    plan.dispatches.push_back(
        launch(plain("grad_sinks", s, 1, 0), {.x = s.q_heads},
               {Role::kSinks, Role::kLse, Role::kDelta, Role::kGradSinks, Role::kParams}));
  return plan;
}

bool needs_copy(const TensorView& view) {
  return view.is_present() && view.shape[3] > 1 && view.strides[3] != 1;
}

ForwardTensors dense_forward(const Problem& s) {
  ForwardTensors t;
  t.query = dense_view(s.dtype, {s.batch, s.q_heads, s.q_len, s.qk_dim});
  t.key = dense_view(s.dtype, {s.batch, s.kv_heads, s.kv_len, s.qk_dim});
  t.value = dense_view(s.dtype, {s.batch, s.kv_heads, s.kv_len, s.v_dim});
  t.out = dense_view(s.dtype, {s.batch, s.q_heads, s.q_len, s.v_dim});
  t.lse = dense_view(statistics_type(), {s.batch, s.q_heads, s.q_len, 1});
  if (s.mask != MaskKind::kNone) t.mask = dense_mask(s);
  if (s.has_sinks) t.sinks = dense_view(statistics_type(), {1, s.q_heads, 1, 1});
  return t;
}

BackwardTensors dense_backward(const Problem& s) {
  const ForwardTensors f = dense_forward(s);
  BackwardTensors t;
  t.query = t.grad_query = f.query;
  t.key = t.grad_key = f.key;
  t.value = t.grad_value = f.value;
  t.out = t.grad_out = f.out;
  t.mask = f.mask;
  t.sinks = t.grad_sinks = f.sinks;
  t.lse = f.lse;
  return t;
}

std::string source(const Dispatch& dispatch) {
  return std::string(kKernelSource) + dispatch.specialization + "\n";
}

std::string to_string(const Plan& plan) {
  std::ostringstream text;
  for (const Dispatch& d : plan.dispatches) {
    text << d.kernel << ": grid " << d.grid.x << "x" << d.grid.y << "x" << d.grid.z << ", "
         << d.group.x << " threads, " << d.threadgroup_bytes << " bytes of threadgroup memory\n  "
         << describe_features(parse_host_name(d.kernel).features) << "\n  buffers:";
    for (Role role : d.buffers) text << " " << name(role);
    text << "\n";
  }
  for (const Scratch& s : plan.scratch)
    text << "scratch " << name(s.role) << ": " << s.bytes << " bytes\n";
  return text.str();
}

}  // namespace sdpa::metal
