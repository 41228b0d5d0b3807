// SPDX-License-Identifier: MIT
#include "torch_attention.h"

namespace sim {
namespace {

// torch's PrefillAttnParams and PrefillAttnMaskParams.
struct PrefillParams {
  int batch, heads, dim, q_len, kv_len, group;
  float scale, softcap;
  int q_strides[3], k_strides[3], v_strides[3], o_strides[3];
};

struct MaskParams {
  int strides[4];
};

template <size_t kCount>
void copy_strides(const sdpa::TensorView& view, int (&strides)[kCount]) {
  for (size_t i = 0; i < kCount; i++) strides[i] = int(view.strides[i]);
}

PrefillParams prefill_params(const Attention& call) {
  constexpr float kNoSoftcap = 1;
  const sdpa::Problem& p = call.problem;
  PrefillParams params{int(p.batch),
                       int(p.q_heads),
                       int(p.qk_dim),
                       int(p.q_len),
                       int(p.kv_len),
                       int(p.group()),
                       float(p.scale),
                       kNoSoftcap,
                       {},
                       {},
                       {},
                       {}};
  copy_strides(call.tensors.query, params.q_strides);
  copy_strides(call.tensors.key, params.k_strides);
  copy_strides(call.tensors.value, params.v_strides);
  copy_strides(call.tensors.out, params.o_strides);
  return params;
}

// uint3 and uint4 of the kernel's parameters: three numbers and a gap.
struct Triple {
  unsigned query, key, value, unused = 0;
};

struct Scalars {
  explicit Scalars(const Attention& call) {
    const sdpa::ForwardTensors& t = call.tensors;
    const auto strides = [&t](size_t dim) {
      return Triple{unsigned(t.query.strides[dim]), unsigned(t.key.strides[dim]),
                    unsigned(t.value.strides[dim])};
    };
    group = unsigned(call.problem.group());
    kv_len = unsigned(call.problem.kv_len);
    scale = float(call.problem.scale);
    head_strides = strides(1);
    row_strides = strides(2);
    batch_strides = strides(0);
    batch_strides.unused = unsigned(call.problem.q_heads);
    for (size_t i = 0; i < 4 && t.mask.is_present(); i++)
      mask_strides[i] = unsigned(t.mask.strides[3 - i]);
  }

  unsigned group, kv_len;
  float scale;
  Triple head_strides, row_strides, batch_strides;
  unsigned mask_strides[4] = {};
};

std::string decode_kernel(const std::string& variant, const sdpa::Problem& p) {
  return variant + msl_name(p.dtype) + "_" + std::to_string(p.qk_dim);
}

}  // namespace

Result run_prefill(Attention& call, const std::string& variant, const PrefillShape& shape,
                   uint64_t seed) {
  const sdpa::Problem& p = call.problem;
  const sdpa::ForwardTensors& t = call.tensors;
  const PrefillParams params = prefill_params(call);
  MaskParams mask_params{};
  std::vector<Binding> bindings = {view_buffer(0, t.query), view_buffer(1, t.key),
                                   view_buffer(2, t.value), view_buffer(3, t.out),
                                   bytes(4, params)};
  if (t.mask.is_present()) {
    copy_strides(t.mask, mask_params.strides);
    bindings.insert(bindings.end(), {bytes(5, mask_params), view_buffer(6, t.mask)});
  }
  const auto blocks = unsigned(divide_up(p.q_len, shape.rows));
  return run(
      {.function = "prefill_" + variant + "_" + msl_name(p.dtype) + "_" + std::to_string(p.qk_dim),
       .bindings = bindings,
       .grid = {blocks, unsigned(p.q_heads), unsigned(p.batch)},
       .group = {32, unsigned(shape.groups)}},
      {.seed = seed});
}

Result run_decode(Attention& call, const std::string& variant, uint64_t seed) {
  const sdpa::Problem& p = call.problem;
  const sdpa::ForwardTensors& t = call.tensors;
  const Scalars s(call);
  std::vector<Binding> bindings = {
      view_buffer(0, t.query),   view_buffer(1, t.key),     view_buffer(2, t.value),
      view_buffer(3, t.out),     bytes(4, s.group),         bytes(5, s.kv_len),
      bytes(6, s.head_strides),  bytes(7, s.row_strides),   bytes(8, s.scale),
      bytes(10, s.mask_strides), bytes(11, s.batch_strides)};
  if (t.mask.is_present()) bindings.push_back(view_buffer(9, t.mask));
  return run({.function = decode_kernel(variant, p),
              .bindings = bindings,
              .grid = {unsigned(p.batch * p.q_heads), unsigned(p.q_len)},
              .group = {1024}},
             {.seed = seed});
}

Result run_split_decode(Attention& call, uint64_t seed) {
  constexpr unsigned kBlocks = 32, kGroup = 8 * 32;
  const sdpa::Problem& p = call.problem;
  const sdpa::ForwardTensors& t = call.tensors;
  const Scalars s(call);
  const size_t rows = size_t(p.batch * p.q_heads * p.q_len) * kBlocks;
  std::vector<uint8_t> partial(rows * size_t(p.v_dim * sdpa::size_bytes(p.dtype)));
  std::vector<float> sums(rows), maxima(rows);
  const unsigned heads = unsigned(p.batch * p.q_heads), queries = unsigned(p.q_len);
  // All lanes of a SIMD group store one sum: a race, of equal values.
  Result both =
      run({.function = decode_kernel("decode_first_", p),
           .bindings = {view_buffer(0, t.query), view_buffer(1, t.key), view_buffer(2, t.value),
                        buffer(3, partial), buffer(4, sums), buffer(5, maxima), bytes(6, s.group),
                        bytes(7, s.kv_len), bytes(8, s.head_strides), bytes(9, s.row_strides),
                        bytes(10, s.scale), bytes(12, s.mask_strides), bytes(13, s.batch_strides)},
           .grid = {heads, queries, kBlocks},
           .group = {kGroup}},
          {.seed = seed, .device_races = Options::Races::kIgnore});
  if (both.ok())
    add(both, run({.function = decode_kernel("decode_second_", p),
                   .bindings = {buffer(0, partial), buffer(1, sums), buffer(2, maxima),
                                view_buffer(3, t.out)},
                   .grid = {heads, queries},
                   .group = {1024}},
                  {.seed = seed}));
  return both;
}

}  // namespace sim
