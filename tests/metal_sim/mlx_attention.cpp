// SPDX-License-Identifier: MIT
#include "mlx_attention.h"

namespace sim {
namespace {

using sdpa::Causal;

// MLX's AttnParams.
struct SteelParams {
  int batch, heads, dim, q_len, kv_len, group;
  float scale;
  int q_blocks, kv_blocks, whole_q_blocks, whole_kv_blocks, q_rest, kv_rest, q_offset;
  int64_t q_strides[3], k_strides[3], v_strides[3], o_strides[3];
};

struct MaskParams {
  int64_t strides[3];
};

void copy_strides(const sdpa::TensorView& view, int64_t (&strides)[3]) {
  for (size_t i = 0; i < 3; i++) strides[i] = view.strides[i];
}

// With two columns both SIMD groups of a row store its log-sum-exp: a race, of equal values.
Options::Races device_races(const SteelShape& shape) {
  return shape.columns == 1 ? Options::Races::kCheck : Options::Races::kIgnore;
}

SteelParams steel_params(const Attention& call, int rows, int keys) {
  const sdpa::Problem& p = call.problem;
  SteelParams params{.batch = int(p.batch),
                     .heads = int(p.q_heads),
                     .dim = int(p.qk_dim),
                     .q_len = int(p.q_len),
                     .kv_len = int(p.kv_len),
                     .group = int(p.group()),
                     .scale = float(p.scale),
                     .q_blocks = divide_up(p.q_len, rows),
                     .kv_blocks = divide_up(p.kv_len, keys),
                     .whole_q_blocks = int(p.q_len / rows),
                     .whole_kv_blocks = int(p.kv_len / keys),
                     .q_rest = int(p.q_len % rows),
                     .kv_rest = int(p.kv_len % keys),
                     .q_offset = int(p.kv_len - p.q_len),
                     .q_strides = {},
                     .k_strides = {},
                     .v_strides = {},
                     .o_strides = {}};
  copy_strides(call.tensors.query, params.q_strides);
  copy_strides(call.tensors.key, params.k_strides);
  copy_strides(call.tensors.value, params.v_strides);
  copy_strides(call.tensors.out, params.o_strides);
  return params;
}

// What all variants pass by value. MLX's names are in the comments.
struct Scalars {
  explicit Scalars(const Attention& call)
      : group(int(call.problem.group())),
        kv_len(int(call.problem.kv_len)),
        heads(int(call.problem.q_heads)),
        scale(float(call.problem.scale)),
        k_head(size_t(call.tensors.key.strides[1])),
        k_row(size_t(call.tensors.key.strides[2])),
        v_head(size_t(call.tensors.value.strides[1])),
        v_row(size_t(call.tensors.value.strides[2])) {}

  int group, kv_len, heads;
  float scale;
  size_t k_head, k_row, v_head, v_row;
};

struct MaskStrides {
  int column = 0, row = 0, head = 0;
};

MaskStrides mask_strides(const sdpa::TensorView& mask) {
  if (!mask.is_present()) return {};
  return {int(mask.strides[3]), int(mask.strides[2]), int(mask.strides[1])};
}

// The function constants.
struct Choices {
  bool has_mask, query_transposed = false, causal, bool_mask, float_mask, has_sinks;
  int blocks;

  std::vector<Constant> list() const {
    return {{20, &has_mask, 1},          {21, &query_transposed, 1}, {22, &causal, 1},
            {23, &bool_mask, 1},         {24, &float_mask, 1},       {25, &has_sinks, 1},
            {26, &blocks, sizeof blocks}};
  }
};

Choices choices(const sdpa::Problem& p, int blocks) {
  return {.has_mask = p.mask != sdpa::MaskKind::kNone,
          .causal = p.causal != Causal::kNone,
          .bool_mask = p.mask == sdpa::MaskKind::kBool,
          .float_mask = p.mask == sdpa::MaskKind::kAdditive,
          .has_sinks = p.has_sinks,
          .blocks = blocks};
}

std::string kernel(const char* name, const sdpa::Problem& p) {
  return name + msl_name(p.dtype) + "_" + std::to_string(p.qk_dim);
}

// Scratch between the passes, of which nothing is written yet.
struct Partials {
  Partials(const sdpa::Problem& p, int blocks)
      : rows(size_t(p.batch * p.q_heads * p.q_len * blocks)),
        out(rows * size_t(p.v_dim * sdpa::size_bytes(p.dtype))),
        sums(rows),
        maxima(rows),
        out_written(out.size()),
        sums_written(rows * sizeof(float)),
        maxima_written(rows * sizeof(float)) {}

  std::vector<Binding> bind(int first) {
    std::vector<Binding> list = {buffer(first, out), buffer(first + 1, sums),
                                 buffer(first + 2, maxima)};
    list[0].written = out_written.data();
    list[1].written = sums_written.data();
    list[2].written = maxima_written.data();
    return list;
  }

  size_t rows;
  std::vector<uint8_t> out;
  std::vector<float> sums, maxima;
  std::vector<uint8_t> out_written, sums_written, maxima_written;
};

Result run_second_pass(Attention& call, Partials& partials, int blocks, uint64_t seed) {
  const sdpa::Problem& p = call.problem;
  std::vector<Binding> bindings = partials.bind(0);
  bindings.insert(bindings.end(), {view_buffer(3, call.tensors.out), bytes(4, blocks)});
  return run({.function = kernel("vector_second_", p),
              .bindings = bindings,
              .grid = {unsigned(p.batch * p.q_heads), unsigned(p.q_len)},
              .group = {1024}},
             {.seed = seed});
}

}  // namespace

Result run_steel(Attention& call, const SteelShape& shape, uint64_t seed) {
  constexpr int kRows = 32;
  const sdpa::Problem& p = call.problem;
  const SteelParams params = steel_params(call, kRows, shape.keys);
  MaskParams mask_params{};
  const bool has_mask = p.mask != sdpa::MaskKind::kNone;
  const bool causal = p.causal != Causal::kNone, sinks = p.has_sinks;
  const bool whole_q = !params.q_rest, whole_kv = !params.kv_rest;
  const sdpa::ForwardTensors& t = call.tensors;
  std::vector<Binding> bindings = {view_buffer(0, t.query), view_buffer(1, t.key),
                                   view_buffer(2, t.value), view_buffer(3, t.out),
                                   bytes(4, params),        view_buffer(8, t.lse)};
  if (has_mask) {
    copy_strides(t.mask, mask_params.strides);
    bindings.push_back(bytes(5, mask_params));
    bindings.push_back(view_buffer(6, t.mask));
  }
  if (sinks) bindings.push_back(view_buffer(7, t.sinks));
  const bool added = p.mask == sdpa::MaskKind::kAdditive;
  return run(
      {.function = "steel_" + msl_name(p.dtype) + "_d" + std::to_string(p.qk_dim) + "_wn" +
                   std::to_string(shape.columns) + "_mask_" + (added ? msl_name(p.dtype) : "bool"),
       .bindings = bindings,
       .constants = {{200, &whole_q, 1},
                     {201, &whole_kv, 1},
                     {300, &has_mask, 1},
                     {301, &causal, 1},
                     {302, &sinks, 1},
                     {303, &call.wants_lse, 1}},
       .grid = {unsigned(params.q_blocks), unsigned(p.q_heads), unsigned(p.batch)},
       .group = {32, 4, unsigned(shape.columns)}},
      {.seed = seed, .device_races = device_races(shape)});
}

Result run_vector(Attention& call, uint64_t seed) {
  const sdpa::Problem& p = call.problem;
  const sdpa::ForwardTensors& t = call.tensors;
  const Scalars s(call);
  const MaskStrides m = mask_strides(t.mask);
  const Choices chosen = choices(p, 0);
  std::vector<Binding> bindings = {
      view_buffer(0, t.query), view_buffer(1, t.key), view_buffer(2, t.value),
      view_buffer(3, t.out),   bytes(4, s.group),     bytes(5, s.kv_len),
      bytes(6, s.k_head),      bytes(7, s.k_row),     bytes(8, s.v_head),
      bytes(9, s.v_row),       bytes(10, s.scale),    bytes(17, s.heads)};
  if (chosen.has_mask) {
    bindings.push_back(view_buffer(chosen.bool_mask ? 11 : 12, t.mask));
    bindings.insert(bindings.end(), {bytes(13, m.column), bytes(14, m.row), bytes(15, m.head)});
  }
  if (chosen.has_sinks) bindings.push_back(view_buffer(16, t.sinks));
  return run({.function = kernel("vector_", p),
              .bindings = bindings,
              .constants = chosen.list(),
              .grid = {unsigned(p.batch * p.q_heads), unsigned(p.q_len)},
              .group = {1024}},
             {.seed = seed});
}

Result run_split_vector(Attention& call, const char* first_kernel, int blocks, uint64_t seed) {
  const sdpa::Problem& p = call.problem;
  const sdpa::ForwardTensors& t = call.tensors;
  const Scalars s(call);
  const MaskStrides m = mask_strides(t.mask);
  const Choices chosen = choices(p, blocks);
  Partials partials(p, blocks);
  std::vector<Binding> bindings = partials.bind(3);
  bindings.insert(bindings.end(),
                  {view_buffer(0, t.query), view_buffer(1, t.key), view_buffer(2, t.value),
                   bytes(7, s.kv_len), bytes(8, s.k_head), bytes(9, s.k_row), bytes(10, s.v_head),
                   bytes(11, s.v_row), bytes(12, s.scale)});
  if (chosen.has_mask) {
    bindings.push_back(view_buffer(chosen.bool_mask ? 13 : 14, t.mask));
    bindings.insert(bindings.end(), {bytes(15, m.column), bytes(16, m.row), bytes(17, m.head)});
  }
  Result both = run({.function = kernel(first_kernel, p),
                     .bindings = bindings,
                     .constants = chosen.list(),
                     .grid = {unsigned(p.kv_heads), unsigned(p.batch), unsigned(blocks)},
                     .group = {32, unsigned(p.group()), unsigned(p.q_len)}},
                    {.seed = seed});
  if (both.ok()) add(both, run_second_pass(call, partials, blocks, seed));
  return both;
}

}  // namespace sim
