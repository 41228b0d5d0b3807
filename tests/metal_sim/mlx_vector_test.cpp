// SPDX-License-Identifier: MIT
// MLX's attention for few queries, in one pass and in two, agrees with the oracle.
#include "attention_arguments.h"

namespace sim {
namespace {

using sdpa::Causal;
using sdpa::DType;
using sdpa::cases::Case;

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

void expect_right_in_one_pass(const Case& spec, uint64_t seed) {
  Attention call(spec);
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
  call.check(run({.function = kernel("vector_", p),
                  .bindings = bindings,
                  .constants = chosen.list(),
                  .grid = {unsigned(p.batch * p.q_heads), unsigned(p.q_len)},
                  .group = {1024}},
                 {.seed = seed}),
             Attention::Lse::kAbsent);
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

void expect_right_in_two_passes(const Case& spec, const char* first_kernel, uint64_t seed) {
  constexpr int kBlocks = 32;
  Attention call(spec);
  const sdpa::Problem& p = call.problem;
  const sdpa::ForwardTensors& t = call.tensors;
  const Scalars s(call);
  const MaskStrides m = mask_strides(t.mask);
  const Choices chosen = choices(p, kBlocks);
  Partials partials(p, kBlocks);
  std::vector<Binding> bindings = partials.bind(3);
  bindings.insert(bindings.end(),
                  {view_buffer(0, t.query), view_buffer(1, t.key), view_buffer(2, t.value),
                   bytes(7, s.kv_len), bytes(8, s.k_head), bytes(9, s.k_row), bytes(10, s.v_head),
                   bytes(11, s.v_row), bytes(12, s.scale)});
  if (chosen.has_mask) {
    bindings.push_back(view_buffer(chosen.bool_mask ? 13 : 14, t.mask));
    bindings.insert(bindings.end(), {bytes(15, m.column), bytes(16, m.row), bytes(17, m.head)});
  }
  const Result first = run({.function = kernel(first_kernel, p),
                            .bindings = bindings,
                            .constants = chosen.list(),
                            .grid = {unsigned(p.kv_heads), unsigned(p.batch), kBlocks},
                            .group = {32, unsigned(p.group()), unsigned(p.q_len)}},
                           {.seed = seed});
  for (const std::string& fault : first.faults) ADD_FAILURE() << fault;
  call.check(run_second_pass(call, partials, kBlocks, seed), Attention::Lse::kAbsent);
}

Case one_query(DType dtype, int64_t kv_len, int64_t group) {
  const int64_t dim = dtype == DType::kFloat32 ? 64 : 128;
  return {.dtype = dtype,
          .batch = 2,
          .q_heads = 2 * group,
          .kv_heads = 2,
          .q_len = 1,
          .kv_len = kv_len,
          .qk_dim = dim,
          .v_dim = dim};
}

TEST(MlxVector, OnePass) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (int64_t kv_len : {100, 513}) expect_right_in_one_pass(one_query(dtype, kv_len, 4), 1);
}

TEST(MlxVector, OnePassWithMasks) {
  Case spec = one_query(DType::kFloat32, 200, 1);
  spec.mask = {.shape = sdpa::cases::MaskShape::kPerHead};
  expect_right_in_one_pass(spec, 0);
  spec.mask = {.shape = sdpa::cases::MaskShape::kPerHead,
               .dtype = DType::kFloat32,
               .pattern = sdpa::cases::MaskPattern::kSoft};
  expect_right_in_one_pass(spec, 2);
}

TEST(MlxVector, OnePassWithSinks) {
  Case spec = one_query(DType::kFloat32, 77, 2);
  spec.sinks = true;
  expect_right_in_one_pass(spec, 1);
}

TEST(MlxVector, TwoPasses) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    expect_right_in_two_passes(one_query(dtype, 1000, 2), "vector_first_", 1);
}

TEST(MlxVector, TwoPassesCausal) {
  Case spec = one_query(DType::kFloat32, 700, 4);
  spec.q_len = 5;
  spec.causal = Causal::kLowerRight;
  expect_right_in_two_passes(spec, "vector_first_", 3);
}

TEST(MlxVector, TwoPassesForEightHeadsAGroup) {
  expect_right_in_two_passes(one_query(DType::kFloat32, 1500, 8), "vector_first_of_8_", 1);
  expect_right_in_two_passes(one_query(DType::kBFloat16, 1500, 8), "vector_first_of_8_", 1);
}

}  // namespace
}  // namespace sim
