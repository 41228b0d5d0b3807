// SPDX-License-Identifier: MIT
#include "tests/cases.h"

#include <array>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace sdpa::cases {
namespace {

constexpr DType kFp32 = DType::kFloat32, kFp16 = DType::kFloat16, kBf16 = DType::kBFloat16;
constexpr std::array kDTypes{kFp16, kBf16, kFp32};
constexpr MaskSpec kBoolMask{.shape = MaskShape::kFull};
constexpr Causal kCausal = Causal::kUpperLeft, kCached = Causal::kLowerRight;

using Cases = std::vector<Case>;

std::string_view short_name(DType dtype) {
  constexpr std::array<std::string_view, 5> names{"fp32", "fp16", "bf16", "fp64", "bool"};
  return names[static_cast<std::size_t>(dtype)];
}

/// Batch, heads, q_len, kv_len, dim, as the original's suites state them.
struct Shape {
  std::int64_t batch, heads, q_len, kv_len, dim;
};

Case plain(const Shape& shape, DType dtype) {
  return {.dtype = dtype,
          .batch = shape.batch,
          .q_heads = shape.heads,
          .kv_heads = shape.heads,
          .q_len = shape.q_len,
          .kv_len = shape.kv_len,
          .qk_dim = shape.dim,
          .v_dim = shape.dim};
}

Case named(std::string name, Case spec, double weight = 1) {
  spec.name = std::move(name);
  spec.weight = weight;
  return spec;
}

Case with(Case spec, const std::function<void(Case&)>& change) {
  change(spec);
  return spec;
}

Case causal(Case spec) {
  spec.causal = kCausal;
  return spec;
}

Case masked(Case spec, MaskSpec mask = kBoolMask) {
  spec.mask = mask;
  return spec;
}

Case grouped(Case spec, std::int64_t kv_heads) {
  spec.kv_heads = kv_heads;
  return spec;
}

Case dropped(Case spec, double probability) {
  spec.dropout = probability;
  return spec;
}

Cases realistic() {
  return {
      named("S1", plain({1, 8, 256, 256, 64}, kBf16)),
      named("S2", plain({1, 8, 1024, 1024, 64}, kBf16), 2),
      named("S3", plain({1, 8, 4096, 4096, 64}, kBf16), 4),
      named("T1", plain({1, 8, 512, 512, 64}, kBf16)),
      named("T2", plain({1, 8, 2048, 2048, 64}, kBf16), 2),
      named("T3", plain({1, 8, 8192, 8192, 64}, kBf16), 4),
      named("X1", plain({1, 8, 1024, 2048, 64}, kBf16), 2),
      named("X2", plain({1, 8, 2048, 1024, 64}, kBf16), 2),
      named("M1", masked(plain({1, 8, 2048, 2048, 64}, kBf16)), 2),
      named("F1", plain({1, 8, 1024, 1024, 64}, kFp32)),
  };
}

/// Every dtype, without a mask, with a bool mask, and causal.
void add_variants(Cases& list, const Shape& shape) {
  for (DType dtype : kDTypes) {
    const Case spec = plain(shape, dtype);
    list.insert(list.end(), {spec, masked(spec), causal(spec)});
  }
}

Cases correctness() {
  constexpr std::array<std::pair<std::int64_t, std::int64_t>, 8> lengths{{{32, 32},
                                                                          {128, 128},
                                                                          {128, 512},
                                                                          {512, 128},
                                                                          {512, 512},
                                                                          {512, 2048},
                                                                          {2048, 512},
                                                                          {2048, 2048}}};
  Cases list;
  for (std::int64_t batch : {1, 2, 4})
    for (std::int64_t heads : {4, 8, 16})
      for (const auto& [q_len, kv_len] : lengths)
        for (std::int64_t dim : {32, 64, 128})
          add_variants(list, {batch, heads, q_len, kv_len, dim});
  const Shape edge{1, 4, 128, 128, 64};
  for (DType dtype : {kFp16, kFp32}) {
    list.push_back(masked(plain(edge, dtype), {.shape = MaskShape::kPerHead}));
    list.push_back(
        masked(plain(edge, dtype),
               {.shape = MaskShape::kFull, .dtype = dtype, .pattern = MaskPattern::kSoft}));
    list.push_back(
        masked(plain(edge, dtype), {.shape = MaskShape::kFull, .pattern = MaskPattern::kEmptyRow}));
    list.push_back(with(plain(edge, dtype), [](Case& spec) { spec.layout = Layout::kTransposed; }));
  }
  list.push_back(dropped(plain(edge, kFp16), 0.1));
  return list;
}

Cases extended() {
  Cases list;
  const auto add = [&](const char* sweep, std::int64_t value, const Shape& shape) {
    list.push_back(named(sweep + std::to_string(value), plain(shape, kBf16)));
  };
  for (std::int64_t dim : {32, 64, 96, 128, 192, 256}) add("dim", dim, {1, 8, 512, 512, dim});
  for (std::int64_t heads : {1, 2, 4, 8, 16, 32}) add("heads", heads, {1, heads, 512, 512, 64});
  for (std::int64_t batch : {1, 2, 4, 8, 32}) add("batch", batch, {batch, 8, 512, 512, 64});
  for (std::int64_t length : {777, 1345, 3141}) add("length", length, {1, 8, length, length, 64});
  for (const auto& [q_len, kv_len] : {std::pair{777, 1345}, {1345, 777}, {3141, 777}})
    list.push_back(plain({1, 8, q_len, kv_len, 64}, kBf16));
  return list;
}

Cases general() {
  Cases list;
  for (std::int64_t batch : {1, 2, 4})
    for (std::int64_t heads : {8, 16})
      for (std::int64_t length : {128, 512, 1024, 2048, 4096})
        for (std::int64_t dim : {64, 128}) add_variants(list, {batch, heads, length, length, dim});
  return list;
}

Case t5_bias(Case spec) {
  spec.scale = 1;
  return masked(std::move(spec),
                {.shape = MaskShape::kPerHead, .dtype = spec.dtype, .pattern = MaskPattern::kSoft});
}

Case gemma(Case spec, std::int64_t window) {
  spec.causal = kCausal;
  spec.softcap = 50;
  spec.window.left = window - 1;
  return spec;
}

Case cached(Case spec, std::int64_t kv_heads) {
  spec.causal = kCached;
  spec.kv_heads = kv_heads;
  return spec;
}

/// The attention shapes of well-known models.
Cases models() {
  return {
      named("gpt2", causal(plain({1, 12, 1024, 1024, 64}, kFp32))),
      named("gpt2-batch", dropped(causal(plain({4, 12, 512, 512, 64}, kFp32)), 0.1)),
      named("llama3-prefill", grouped(causal(plain({1, 32, 2048, 2048, 128}, kBf16)), 8)),
      named("llama3-decode", cached(plain({1, 32, 1, 4096, 128}, kBf16), 8)),
      named("whisper-encoder", plain({1, 20, 1500, 1500, 64}, kFp16)),
      named("whisper-cross", plain({1, 20, 224, 1500, 64}, kFp16)),
      named("whisper-decode", plain({1, 20, 1, 1500, 64}, kFp16)),
      named("vit-large", plain({8, 16, 197, 197, 64}, kFp32)),
      named("swin-window",
            masked(plain({64, 4, 49, 49, 32}, kFp32),
                   {.shape = MaskShape::kPerHead, .dtype = kFp32, .pattern = MaskPattern::kSoft})),
      named("sd-self-64", plain({2, 8, 4096, 4096, 40}, kFp16)),
      named("sd-self-32", plain({2, 8, 1024, 1024, 80}, kFp16)),
      named("sd-cross", plain({2, 8, 4096, 77, 40}, kFp16)),
      named("t5-encoder", t5_bias(plain({4, 12, 512, 512, 64}, kFp32))),
      named("gemma2-local", grouped(gemma(plain({1, 8, 2048, 2048, 256}, kBf16), 1024), 4)),
      named("gemma2-global", grouped(gemma(plain({1, 8, 2048, 2048, 256}, kBf16), 0), 4)),
      named("bert-padded", masked(plain({8, 12, 384, 384, 64}, kFp32),
                                  {.shape = MaskShape::kKeys, .pattern = MaskPattern::kTail})),
      named("gpt-oss", with(grouped(causal(plain({1, 64, 1024, 1024, 64}, kBf16)), 8),
                            [](Case& spec) {
                              spec.sinks = true;
                              spec.window.left = 127;
                            })),
      named("deepseek-latent", with(causal(plain({1, 16, 1024, 1024, 192}, kBf16)),
                                    [](Case& spec) { spec.v_dim = 128; })),
  };
}

Cases masks() {
  const Case base = plain({2, 8, 1024, 1024, 64}, kFp32);
  const auto mask = [&](const char* name, MaskSpec spec) {
    return named(name, masked(base, spec));
  };
  return {
      mask("bool", kBoolMask),
      mask("bool-heads", {.shape = MaskShape::kPerHead}),
      mask("bool-matrix", {.shape = MaskShape::kMatrix}),
      mask("key-padding", {.shape = MaskShape::kKeys, .pattern = MaskPattern::kTail}),
      mask("additive", {MaskShape::kFull, kFp32, MaskPattern::kSoft}),
      mask("additive-half", {MaskShape::kFull, kFp16, MaskPattern::kRandom}),
      mask("additive-heads", {MaskShape::kPerHead, kFp32, MaskPattern::kRandom}),
      mask("additive-keys", {MaskShape::kKeys, kFp32, MaskPattern::kTail}),
      mask("blocks", {MaskShape::kMatrix, DType::kBool, MaskPattern::kBlocks}),
      mask("empty-rows", {MaskShape::kFull, DType::kBool, MaskPattern::kEmptyRows}),
      named("causal", causal(base)),
      named("causal-and-bool", causal(masked(base))),
      named("window", with(base, [](Case& spec) { spec.window = {128, 128}; })),
      named("causal-window", with(causal(base), [](Case& spec) { spec.window.left = 128; })),
  };
}

Cases training() {
  Cases list;
  for (DType dtype : {kFp32, kBf16})
    for (std::int64_t length : {512, 1024, 2048})
      for (std::int64_t dim : {64, 128}) {
        const Case spec = plain({1, 8, length, length, dim}, dtype);
        list.insert(list.end(), {spec, causal(spec), dropped(causal(spec), 0.1)});
      }
  list.push_back(grouped(causal(plain({1, 16, 1024, 1024, 128}, kBf16)), 4));
  list.push_back(t5_bias(plain({2, 8, 512, 512, 64}, kFp32)));
  return list;
}

Cases decode() {
  Cases list;
  for (DType dtype : {kFp32, kBf16})
    for (std::int64_t q_len : {1, 4})
      for (std::int64_t kv_len : {256, 1024, 4096, 16384})
        for (std::int64_t kv_heads : {32, 8})
          list.push_back(cached(plain({1, 32, q_len, kv_len, 128}, dtype), kv_heads));
  list.push_back(cached(plain({16, 32, 1, 1024, 128}, kBf16), 8));
  return list;
}

Cases brief() {
  Cases list;
  for (DType dtype : {kFp32, kBf16})
    for (std::int64_t length : {1, 8, 16, 32, 64, 128, 197})
      list.push_back(plain({4, 8, length, length, 64}, dtype));
  list.push_back(plain({1, 1, 4, 4, 8}, kFp32));
  list.push_back(plain({512, 4, 16, 16, 32}, kFp32));
  return list;
}

Cases speed_of_16_bits() {
  Cases list;
  for (DType dtype : {kBf16, kFp16}) {
    const std::string prefix = dtype == kBf16 ? "bf16 " : "fp16 ";
    list.push_back(named(prefix + "D64 L2048", plain({1, 8, 2048, 2048, 64}, dtype)));
    list.push_back(
        named(prefix + "D128 L2048 causal", causal(plain({1, 8, 2048, 2048, 128}, dtype))));
  }
  return list;
}

Cases speed_of_decoding() {
  Cases list;
  for (DType dtype : kDTypes)
    list.push_back(named("decode " + std::string(short_name(dtype)) + " H32/8 D128 8k",
                         grouped(plain({1, 32, 1, 8192, 128}, dtype), 8)));
  list.push_back(named("decode fp32 H8 D64 16k", plain({1, 8, 1, 16384, 64}, kFp32)));
  list.push_back(named("decode fp32 H1 D128 32k", plain({1, 1, 1, 32768, 128}, kFp32)));
  return list;
}

/// What the kernels are tuned by: one case for every path that has a cost of its own.
Cases speed() {
  const Case base = plain({1, 8, 2048, 2048, 64}, kFp32);
  Cases list = {
      named("fp32 D64 L2048", base),
      named("fp32 D128 L2048", plain({1, 8, 2048, 2048, 128}, kFp32)),
      named("fp32 D64 L2048 causal", causal(base)),
      named("fp32 D64 L2048 bool mask", masked(base, {.shape = MaskShape::kMatrix})),
      named("fp32 D64 L2048 key padding",
            masked(base, {.shape = MaskShape::kKeys, .pattern = MaskPattern::kTail})),
      named("fp32 D64 L2048 additive mask",
            masked(base, {MaskShape::kPerHead, kFp32, MaskPattern::kSoft})),
      named("fp32 D64 L2048 dropout", dropped(base, 0.1)),
      named("fp32 H32/8 D128 L2048 causal",
            grouped(causal(plain({1, 32, 2048, 2048, 128}, kFp32)), 8)),
      named("fp32 H1 D64 L4096", plain({1, 1, 4096, 4096, 64}, kFp32)),
      named("fp32 B32 H12 D64 L128", plain({32, 12, 128, 128, 64}, kFp32)),
      named("fp32 B256 H4 D32 L49", plain({256, 4, 49, 49, 32}, kFp32)),
      named("fp32 D64 L4096 window 256", with(causal(plain({1, 8, 4096, 4096, 64}, kFp32)),
                                              [](Case& spec) { spec.window.left = 255; })),
      named("fp32 D64 L2048 softcap", with(base, [](Case& spec) { spec.softcap = 30; })),
      named("fp32 D64 L2048 sinks", with(base, [](Case& spec) { spec.sinks = true; })),
      named("fp32 H1 D8 L4", plain({1, 1, 4, 4, 8}, kFp32)),
  };
  for (const Cases& more : {speed_of_16_bits(), speed_of_decoding()})
    list.insert(list.end(), more.begin(), more.end());
  return list;
}

struct Suite {
  std::string_view name;
  Cases (*cases)();
};

constexpr std::array<Suite, 11> kSuites{{{"realistic", realistic},
                                         {"correctness", correctness},
                                         {"extended", extended},
                                         {"general", general},
                                         {"models", models},
                                         {"masks", masks},
                                         {"training", training},
                                         {"decode", decode},
                                         {"short", brief},
                                         {"speed", speed},
                                         {"conformance", conformance_cases}}};

constexpr auto kSuiteNames = [] {
  std::array<std::string_view, kSuites.size()> names;
  for (std::size_t n = 0; n < names.size(); ++n) names[n] = kSuites[n].name;
  return names;
}();

std::string pair_or_one(std::int64_t first, std::int64_t second, char separator) {
  const std::string text = std::to_string(first);
  return first == second ? text : text + separator + std::to_string(second);
}

std::string describe(const MaskSpec& mask) {
  constexpr std::array<std::string_view, 6> shapes{"", "full", "heads", "matrix", "keys", "rows"};
  constexpr std::array<std::string_view, 7> patterns{
      "", " soft", " empty-row", " empty-rows", " tail", " blocks", " all"};
  if (mask.shape == MaskShape::kNone) return "";
  std::ostringstream text;
  text << " mask(" << short_name(mask.dtype) << " " << shapes[static_cast<std::size_t>(mask.shape)]
       << patterns[static_cast<std::size_t>(mask.pattern)] << ")";
  return text.str();
}

}  // namespace

std::string describe(const Case& s) {
  constexpr std::array<std::string_view, 7> layouts{
      "", " transposed", " sliced", " expanded", " column-stride", " huge-rows", " huge-heads"};
  constexpr std::array<std::string_view, 3> causality{"", " causal", " causal(lower-right)"};
  std::ostringstream text;
  text << short_name(s.dtype) << " B" << s.batch << " H" << pair_or_one(s.q_heads, s.kv_heads, '/')
       << " L" << pair_or_one(s.q_len, s.kv_len, 'x') << " D" << pair_or_one(s.qk_dim, s.v_dim, '/')
       << causality[static_cast<std::size_t>(s.causal)];
  if (s.window.left >= 0 || s.window.right >= 0)
    text << " window(" << s.window.left << "," << s.window.right << ")";
  text << describe(s.mask);
  if (s.softcap > 0) text << " softcap=" << s.softcap;
  if (s.sinks) text << " sinks";
  if (s.dropout > 0) text << " dropout=" << s.dropout;
  if (s.scale) text << " scale=" << *s.scale;
  text << layouts[static_cast<std::size_t>(s.layout)];
  if (s.grad_lse) text << " grad-lse";
  return text.str();
}

Attributes attributes(const Case& spec, std::uint64_t seed) {
  return {.scale = spec.scale,
          .causal = spec.causal,
          .window = spec.window,
          .softcap = spec.softcap,
          .dropout = {.probability = spec.dropout, .seed = seed}};
}

bool has_empty_extent(const Case& s) {
  return s.batch * s.q_heads * s.q_len * s.kv_len * s.qk_dim * s.v_dim == 0;
}

MaskExtents mask_extents(const Case& spec) {
  switch (spec.mask.shape) {
    case MaskShape::kFull:
      return {spec.batch, 1, spec.q_len, spec.kv_len};
    case MaskShape::kPerHead:
      return {spec.batch, spec.q_heads, spec.q_len, spec.kv_len};
    case MaskShape::kMatrix:
      return {1, 1, spec.q_len, spec.kv_len};
    case MaskShape::kKeys:
      return {spec.batch, 1, 1, spec.kv_len};
    case MaskShape::kRows:
      return {spec.batch, 1, spec.q_len, 1};
    default:
      return {};
  }
}

std::span<const std::string_view> suite_names() { return kSuiteNames; }

std::vector<Case> suite(std::string_view name) {
  for (const Suite& candidate : kSuites)
    if (candidate.name == name) {
      Cases list = candidate.cases();
      for (Case& spec : list) {
        spec.suite = name;
        if (spec.name.empty()) spec.name = describe(spec);
      }
      return list;
    }
  std::string known;
  for (std::string_view each : kSuiteNames)
    known += (known.empty() ? "" : ", ") + std::string(each);
  throw std::invalid_argument("there is no suite '" + std::string(name) + "'; known are " + known);
}

}  // namespace sdpa::cases
