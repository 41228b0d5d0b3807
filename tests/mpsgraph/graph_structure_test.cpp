// SPDX-License-Identifier: MIT
//
// What holds for every graph, by its nodes alone: of every named case of every suite, and of
// problems that are too large to be evaluated. Each rule keeps a fault away that others report of
// MPSGraph (docs/backends.md lists them), or is a promise about precision and copies.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <set>

#include "sdpa/metal/attention_graph.h"
#include "tests/case_data.h"

namespace sdpa::metal {
namespace {

using cases::Case;

// The faults' own bounds, not the limits that the graphs are built with.
constexpr std::int64_t kArrayBytes = std::int64_t{1} << 32;    // an array is smaller
constexpr std::int64_t kProductBytes = std::int64_t{1} << 31;  // (M + 2K) N of a product is smaller
constexpr std::int64_t kScores = std::int64_t{1} << 31;        // of one call of the operator: fewer
constexpr std::int64_t kTerms = 32767;                         // of one sum of a product: fewer

bool computes(Op op) {
  constexpr std::array ops{Op::kAdd, Op::kMultiply, Op::kDivide,    Op::kMaximum,   Op::kExp,
                           Op::kLog, Op::kTanh,     Op::kReduceMax, Op::kReduceSum, Op::kMatmul};
  return std::ranges::count(ops, op) > 0;
}

/// The inputs that each node is made of, as bits by role.
std::vector<std::uint64_t> origins(const Graph& graph) {
  std::vector<std::uint64_t> found;
  for (const Node& node : graph.nodes()) {
    std::uint64_t roles =
        node.op == Op::kInput ? std::uint64_t{1} << static_cast<int>(node.role) : 0;
    for (const NodeId input : node.inputs) roles |= found[static_cast<std::size_t>(input)];
    found.push_back(roles);
  }
  return found;
}

constexpr std::uint64_t bit(Role role) { return std::uint64_t{1} << static_cast<int>(role); }

constexpr std::uint64_t kOfKeys = bit(Role::kKey) | bit(Role::kValue);
constexpr std::uint64_t kOfQueries = bit(Role::kQuery) | bit(Role::kGradOut);

/// The rules that a graph breaks.
class Rules {
 public:
  Rules(const Graph& graph, const Problem& problem)
      : graph_(graph), s_(problem), origins_(origins(graph)) {}

  std::set<std::string> broken() {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) check(graph_.nodes()[n], origins_[n]);
    return std::move(broken_);
  }

 private:
  void require(bool holds, const std::string& rule) {
    if (!holds) broken_.insert(rule);
  }

  void check(const Node& n, std::uint64_t origin) {
    require(element_count(n.shape) * size_bytes(n.type) < kArrayBytes, "an array is too large");
    require(!computes(n.op) || n.type == Element::kFloat32, "16 bits are computed with");
    require(n.op != Op::kConstant || n.scalar == 0 || element_count(n.shape) == 1,
            "a constant is a tensor");
    const bool is_wide = n.type == Element::kFloat32 || n.type == Element::kInt32;
    require(n.op != Op::kConstant || is_wide || n.scalar == 0 || n.scalar <= -3e4,
            "a number is rounded to 16 bits");
    const bool is_of_keys = (origin & kOfKeys) != 0 && (origin & kOfQueries) == 0;
    require(!is_of_keys || n.shape.at(1) <= s_.kv_heads, "keys are repeated for a group's heads");
    if (n.op == Op::kMatmul) check_product(n);
    if (n.op == Op::kAttention) check_attention(n);
  }

  void check_product(const Node& n) {
    const Shape &a = graph_.shape(n.inputs[0]), &b = graph_.shape(n.inputs[1]);
    require(a[3] < kTerms, "a sum is too long");
    require_product(a[2], a[3], b[3]);
  }

  void require_product(std::int64_t m, std::int64_t k, std::int64_t n) {
    require((m + 2 * k) * n * 4 < kProductBytes, "a product is too large");
  }

  void check_attention(const Node& n) {
    const Shape &q = graph_.shape(n.inputs[0]), &k = graph_.shape(n.inputs[1]);
    require(q[0] * q[1] * q[2] * k[2] < kScores, "the operator has too many scores");
    require(k[2] < kTerms, "the operator's sum is too long");
    require_product(q[2], q[3], k[2]);
    require_product(q[2], k[2], q[3]);
  }

  const Graph& graph_;
  const Problem& s_;
  const std::vector<std::uint64_t> origins_;
  std::set<std::string> broken_;
};

/// A call without its tensors: the problem, and how large its mask is.
struct Call {
  Problem problem;
  std::array<std::int64_t, 4> mask{};
};

Call call_of(const Case& spec) {
  const cases::MaskExtents n = mask_extents(spec);
  return {problem_of(spec, 1), {n.batch, n.heads, n.rows, n.columns}};
}

bool is_float(const Problem& s) { return s.mask == MaskKind::kAdditive; }

/// Forward with and without the log-sum-exp, on old and new systems; backward with all gradients.
std::vector<GraphSpec> specs_of(const Call& call) {
  const GraphSpec forward{.problem = call.problem, .mask = call.mask};
  GraphSpec with_lse = forward, with_descriptor = forward, backward = forward;
  with_lse.lse = true;
  with_descriptor.has_descriptor = true;
  backward.pass = Pass::kBackward;
  backward.grad_query = backward.grad_key = backward.grad_value = backward.grad_lse = true;
  backward.grad_sinks = call.problem.has_sinks;
  if (is_float(call.problem)) backward.grad_mask = call.mask;
  return {forward, with_lse, with_descriptor, backward};
}

GraphSpec restricted(GraphSpec spec, const Piece& piece) {
  spec.problem = metal::restricted(spec.problem, piece);
  for (auto* extents : {&spec.mask, &spec.grad_mask}) {
    (*extents)[0] = std::min((*extents)[0], spec.problem.batch);
    (*extents)[1] = std::min((*extents)[1], spec.problem.q_heads);
  }
  return spec;
}

struct Tally {
  int graphs = 0, refused = 0;

  ~Tally() { std::cout << graphs << " graphs, " << refused << " refused problems\n"; }
};

/// The rules that the graphs of a call break.
std::set<std::string> broken(const Call& call, const GraphLimits& limits, Tally& tally) {
  std::set<std::string> rules;
  for (GraphSpec& spec : specs_of(call)) {
    spec.limits = limits;
    std::set<std::pair<std::int64_t, std::int64_t>> seen;
    for (const Piece& piece : pieces_of(spec)) {
      if (!seen.insert({piece.batches, piece.kv_heads}).second) continue;
      const GraphSpec part = restricted(spec, piece);
      rules.merge(Rules(make_graph(part), part.problem).broken());
      ++tally.graphs;
    }
  }
  return rules;
}

void check(const Call& call, Tally& tally) {
  if (!graph_refusals(call.problem).empty()) {
    ++tally.refused;
    return;
  }
  EXPECT_EQ(broken(call, {}, tally), std::set<std::string>());
}

TEST(GraphStructure, OfEveryNamedCase) {
  Tally tally;
  for (const std::string_view name : cases::suite_names()) {
    for (const Case& spec : cases::suite(name)) {
      if (has_empty_extent(spec)) continue;
      SCOPED_TRACE(std::string(name) + ": " + spec.name);
      check(call_of(spec), tally);
    }
  }
  EXPECT_GT(tally.graphs, 5000);
}

struct Large {
  const char* name;
  Case spec;
  bool is_refused = false;
};

std::vector<Large> large_problems() {
  using cases::MaskShape;
  constexpr DType kFloat = DType::kFloat32, kHalf = DType::kFloat16;
  const auto of = [](std::int64_t batch, std::int64_t q_heads, std::int64_t kv_heads,
                     std::int64_t q_len, std::int64_t kv_len, std::int64_t dim) {
    return Case{.dtype = kHalf,
                .batch = batch,
                .q_heads = q_heads,
                .kv_heads = kv_heads,
                .q_len = q_len,
                .kv_len = kv_len,
                .qk_dim = dim,
                .v_dim = dim};
  };
  const auto masked = [](Case spec, MaskShape shape, DType dtype) {
    spec.mask = {.shape = shape, .dtype = dtype};
    return spec;
  };
  const auto causal = [](Case spec) {
    spec.causal = Causal::kUpperLeft;
    return spec;
  };
  Case dropped = of(4, 8, 8, 16384, 16384, 64);
  dropped.dropout = 0.1;
  return {
      {"more than 2^32 scores", of(8, 16, 16, 16384, 16384, 64)},
      {"a million scores a row", of(1, 1, 1, 64, 1 << 20, 64)},
      {"a long causal sequence", causal(of(1, 8, 2, 65536, 65536, 128))},
      {"one long head", of(1, 1, 1, 32000, 32000, 64)},
      {"32 767 keys", of(1, 2, 2, 512, 32767, 64)},
      {"a mask of 2^33 bytes", masked(of(4, 8, 8, 8192, 8192, 64), MaskShape::kPerHead, kFloat)},
      {"a mask for a batch", masked(of(16, 2, 2, 16384, 16384, 64), MaskShape::kFull, kHalf)},
      {"a bool mask", masked(of(2, 32, 8, 16384, 16384, 64), MaskShape::kMatrix, DType::kBool)},
      {"a mask of 2^30 scores", masked(of(1, 4, 4, 16384, 16384, 64), MaskShape::kMatrix, kHalf)},
      {"padding", masked(of(64, 16, 16, 4096, 4096, 64), MaskShape::kKeys, DType::kBool)},
      {"wide heads", of(1, 16, 1, 32768, 4096, 512)},
      {"few keys", of(2, 8, 8, 1 << 19, 1, 512)},
      {"dropout", dropped},
      {"no array holds it", of(1, 1, 1, 1 << 22, 64, 512), true},
      {"no block holds it", of(1, 1, 1, 1 << 20, 1 << 20, 64), true},
  };
}

TEST(GraphStructure, OfProblemsTooLargeToBeEvaluated) {
  for (const Large& large : large_problems()) {
    SCOPED_TRACE(large.name);
    Tally tally;
    check(call_of(large.spec), tally);
    EXPECT_EQ(tally.refused > 0, large.is_refused);
  }
}

// What each limit is for: without it a rule is broken.
TEST(GraphStructure, EveryLimitKeepsARule) {
  constexpr std::int64_t kNone = std::int64_t{1} << 50;
  const std::pair<std::int64_t GraphLimits::*, std::string> limits[] = {
      {&GraphLimits::operator_scores, "the operator has too many scores"},
      {&GraphLimits::operator_scores, "an array is too large"},
      {&GraphLimits::operator_keys, "the operator's sum is too long"},
      {&GraphLimits::reduction, "a sum is too long"},
      {&GraphLimits::product_bytes, "a product is too large"},
      {&GraphLimits::array_bytes, "an array is too large"},
  };
  for (const auto& [limit, rule] : limits) {
    GraphLimits without;
    without.*limit = kNone;
    std::set<std::string> rules;
    Tally tally;
    for (const Large& large : large_problems()) {
      if (!large.is_refused) rules.merge(broken(call_of(large.spec), without, tally));
    }
    EXPECT_TRUE(rules.contains(rule)) << rule;
  }
}

// A mask whose extents alone tell that it is too large: the next back end does the call.
TEST(GraphStructure, AMaskThatNoArrayHolds) {
  Call call = call_of({.dtype = DType::kFloat32,
                       .q_heads = 8,
                       .kv_heads = 1,
                       .q_len = 16384,
                       .kv_len = 16384,
                       .qk_dim = 64,
                       .v_dim = 64,
                       .mask = {cases::MaskShape::kPerHead, DType::kFloat32}});
  ASSERT_EQ(graph_refusals(call.problem), std::vector<std::string>());
  try {
    pieces_of(specs_of(call)[0]);
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(),
                 "One array of a head has 8589934592 bytes; MPSGraph holds at most 4294967295.");
  }
}

}  // namespace
}  // namespace sdpa::metal
