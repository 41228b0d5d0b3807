// SPDX-License-Identifier: MIT
// What the graphs of attention are made of, and what they give where others go wrong.
#include "sdpa/metal/attention_graph.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "sdpa/element.h"
#include "sdpa/metal/graph_blocks.h"
#include "tests/conformance.h"
#include "tests/mpsgraph/evaluated_graphs.h"

namespace sdpa::metal {
namespace {

using cases::Case;
using cases::CaseData;
using cases::MaskPattern;
using cases::MaskShape;
using values::EvaluatedGraphs;

constexpr DType kHalf = DType::kFloat16, kBrain = DType::kBFloat16;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Case plain() {
  return {.q_heads = 2, .kv_heads = 2, .q_len = 40, .kv_len = 70, .qk_dim = 16, .v_dim = 16};
}

GraphSpec forward_spec(const Case& spec) {
  const CaseData data(spec, 1);
  ForwardTensors tensors = data.forward_tensors();
  tensors.lse = {};
  return spec_of(data.problem, tensors);
}

int count(const Graph& graph, Op op) {
  return static_cast<int>(std::ranges::count(graph.nodes(), op, &Node::op));
}

Case grouped(Case spec) {
  spec.q_heads = 8;
  return spec;
}

Case masked(Case spec, MaskShape shape, DType dtype = DType::kBool,
            MaskPattern pattern = MaskPattern::kRandom) {
  spec.mask = {.shape = shape, .dtype = dtype, .pattern = pattern};
  return spec;
}

// ---- What is chosen ----

TEST(AttentionGraph, IsApplesOperatorWhereThatCanSayIt) {
  const auto uses = [](Case spec) { return uses_operator(forward_spec(spec)); };
  Case causal = plain(), capped = plain(), sunk = plain(), wide = plain(), dropped = plain();
  causal.causal = Causal::kUpperLeft;
  capped.softcap = 5;
  sunk.sinks = true;
  wide.v_dim = 24;
  dropped.dropout = 0.1;
  EXPECT_TRUE(uses(plain()));
  EXPECT_TRUE(uses(causal));
  EXPECT_TRUE(uses(grouped(masked(plain(), MaskShape::kKeys))));
  EXPECT_FALSE(uses(capped) || uses(sunk) || uses(wide) || uses(dropped));
}

// A mask of numbers is not rounded to fewer bits than it has.
TEST(AttentionGraph, WritesOutWhatWouldRoundTheMask) {
  Case spec = masked(plain(), MaskShape::kFull, DType::kFloat32);
  EXPECT_TRUE(uses_operator(forward_spec(spec)));
  spec.dtype = kBrain;
  EXPECT_FALSE(uses_operator(forward_spec(spec)));
  spec.mask.dtype = kBrain;
  EXPECT_TRUE(uses_operator(forward_spec(spec)));
}

TEST(AttentionGraph, LeavesCausalityToMacos27) {
  Case spec = plain();
  spec.kv_len = spec.q_len;
  spec.causal = Causal::kUpperLeft;
  GraphSpec graph = forward_spec(spec);
  EXPECT_EQ(count(make_graph(graph), Op::kCoordinate), 2);
  graph.has_descriptor = true;
  EXPECT_EQ(count(make_graph(graph), Op::kCoordinate), 0);
  graph.problem.window.left = 3;
  EXPECT_EQ(count(make_graph(graph), Op::kCoordinate), 2);
}

// Keys and values of a group are used as they are: no node repeats them.
TEST(AttentionGraph, GroupsHeadsWithoutCopies) {
  for (const bool lse : {false, true}) {
    GraphSpec spec = forward_spec(grouped(plain()));
    spec.lse = lse;
    const Graph graph = make_graph(spec);
    EXPECT_EQ(count(graph, Op::kBroadcast) + count(graph, Op::kConcat), 0) << to_string(graph);
    for (const Node& node : graph.nodes()) {
      if (node.op == Op::kMatmul || node.op == Op::kAttention) {
        EXPECT_EQ(node.shape[1], 2);
      }
    }
  }
}

// The pattern of matmul, softMax, matmul is what macOS 15 rewrites wrongly; select before softMax
// in 16 bits is another.
TEST(AttentionGraph, WritesOutIn32Bits) {
  Case spec = plain();
  spec.dtype = kHalf;
  spec.dropout = 0.1;
  const CaseData data(spec, 1);
  const Graph graph = make_graph(spec_of(data.problem, data.backward_tensors()));
  for (const Node& node : graph.nodes()) {
    const bool is_edge = node.op == Op::kInput || node.op == Op::kCast || node.op == Op::kSlice;
    EXPECT_TRUE(is_edge || node.type != Element::kFloat16) << name(node.op);
  }
}

// Only what is asked for is computed.
TEST(AttentionGraph, ComputesOnlyTheGradientsWanted) {
  const CaseData data(masked(plain(), MaskShape::kPerHead, DType::kFloat32), 1);
  BackwardTensors tensors = data.backward_tensors();
  const int all = count(make_graph(spec_of(data.problem, tensors)), Op::kMatmul);
  tensors.grad_key = tensors.grad_mask = {};
  const Graph fewer = make_graph(spec_of(data.problem, tensors));
  EXPECT_EQ(all - count(fewer, Op::kMatmul), 1);
  EXPECT_EQ(fewer.outputs().size(), 2u);
}

// ---- Sizes ----

TEST(AttentionGraph, SkipsKeysThatABlockDoesNotSee) {
  Case spec = plain();
  spec.q_len = spec.kv_len = 4096;
  spec.causal = Causal::kUpperLeft;
  const GraphSpec graph{.problem = CaseData(plain(), 1).problem};
  GraphSpec causal = graph;
  causal.problem.q_len = causal.problem.kv_len = 4096;
  causal.problem.causal = Causal::kUpperLeft;
  const std::vector<Block> blocks = blocks_of(causal);
  ASSERT_EQ(blocks.size(), 4u);
  std::int64_t pairs = 0;
  for (const Block& block : blocks) pairs += block.rows * block.keys;
  EXPECT_EQ(pairs, 4096 * 4096 * 5 / 8);
  causal.problem.window.left = 256;
  EXPECT_EQ(blocks_of(causal).back().keys, 1024 + 256);
}

// 32 767 and more terms in one sum read past the end on M1 and M2; more than 2^31 scores crash.
TEST(AttentionGraph, KeepsWithinWhatIsComputedRight) {
  GraphSpec spec{.problem = CaseData(plain(), 1).problem, .lse = true};
  spec.problem.q_len = spec.problem.kv_len = 40000;
  for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
    spec.pass = pass;
    spec.lse = pass == Pass::kForward;
    spec.grad_query = spec.grad_key = spec.grad_value = true;
    const Graph graph = make_graph(spec);
    for (const Node& node : graph.nodes()) {
      EXPECT_LT(element_count(node.shape), std::int64_t{1} << 30);
      if (node.op != Op::kMatmul) continue;
      EXPECT_LE(graph.shape(node.inputs[0])[3], 16384);
    }
  }
}

TEST(AttentionGraph, SplitsBatchesAndHeadsThatDoNotFit) {
  GraphSpec spec{.problem = CaseData(grouped(plain()), 1).problem};
  Problem& problem = spec.problem;
  problem.batch = 12;
  problem.q_len = problem.kv_len = 8192;
  EXPECT_EQ(pieces_of(spec).size(), 2u);  // 8 heads x 128 rows x 8192 keys: 2^23 an entry
  EXPECT_EQ(pieces_of(spec)[0].batches, 6);
  problem.q_len = problem.kv_len = 65536;
  const auto pieces = pieces_of(spec);
  EXPECT_EQ(pieces.size(), 24u);
  EXPECT_EQ(restricted(problem, pieces[3]).dropout.first_head, 12);
}

TEST(AttentionGraph, RefusesWithSentences) {
  Problem problem = CaseData(plain(), 1).problem;
  EXPECT_TRUE(graph_refusals(problem).empty());
  problem.dtype = DType::kFloat64;
  EXPECT_EQ(graph_refusals(problem).at(0),
            "MPSGraph has no float64; float32, float16 and bfloat16 tensors can run.");
  problem.dtype = DType::kFloat32;
  problem.q_len = problem.kv_len = std::int64_t{1} << 20;
  EXPECT_EQ(graph_refusals(problem).at(0),
            "One block of scores has 17179869184 elements; MPSGraph computes at most 1073741823 at "
            "a time without faults.");
  problem.q_len = problem.kv_len = 1 << 17;
  problem.dropout.probability = 0.5;
  EXPECT_EQ(graph_refusals(problem).at(0),
            "One array of a head has 17179869184 bytes; MPSGraph holds at most 4294967295.");
}

// ---- Values ----

bool all_finite(const cases::Tensor& tensor) {
  return std::ranges::all_of(tensor.values(), [](double x) { return std::isfinite(x); });
}

void run(CaseData& data, bool operators) {
  const EvaluatedGraphs backend({}, false);
  ForwardTensors tensors = data.forward_tensors();
  if (operators) tensors.lse = {};
  backend.forward(data.problem, tensors);
  backend.backward(data.problem, data.backward_tensors());
}

void set_row(cases::Tensor& tensor, std::int64_t row, double value) {
  const TensorView& view = tensor.view();
  for (std::int64_t b = 0; b < view.shape[0]; ++b)
    for (std::int64_t h = 0; h < view.shape[1]; ++h)
      for (std::int64_t c = 0; c < view.shape[3]; ++c) write(view, b, h, row, c, value);
}

// Padding may hold anything.
TEST(AttentionGraphValues, NaNInKeysThatNobodySeesStaysThere) {
  for (const bool operators : {false, true})
    for (const Case& spec :
         {masked(plain(), MaskShape::kKeys, DType::kBool, MaskPattern::kTail),
          grouped(masked(plain(), MaskShape::kKeys, DType::kFloat32, MaskPattern::kTail))}) {
      CaseData data(spec, 3);
      const cases::Expected oracle = cases::expected(data);
      for (std::int64_t row = 70 - 23; row < 70; ++row) {
        set_row(data.key, row, kNaN);
        set_row(data.value, row, kNaN);
      }
      run(data, operators);
      if (operators) data.lse = {};
      EXPECT_EQ(cases::forward_failures(data, oracle), std::vector<std::string>());
      EXPECT_EQ(cases::backward_failures(data, oracle), std::vector<std::string>());
    }
}

// So may a query that sees nothing, and its gradient.
TEST(AttentionGraphValues, NaNInQueriesThatSeeNothingStaysThere) {
  CaseData data(masked(plain(), MaskShape::kFull, DType::kBool, MaskPattern::kEmptyRow), 3);
  const cases::Expected oracle = cases::expected(data);
  set_row(data.query, 0, kNaN);
  set_row(data.grad_out, 0, kNaN);
  run(data, false);
  EXPECT_EQ(cases::forward_failures(data, oracle), std::vector<std::string>());
  EXPECT_EQ(cases::backward_failures(data, oracle), std::vector<std::string>());
}

// Masks that hide by a number far down, as models write them, beside ones of -infinity.
TEST(AttentionGraphValues, NumbersFarDownAreNoInfinities) {
  for (const DType dtype : {kHalf, kBrain, DType::kFloat32}) {
    Case spec = masked(plain(), MaskShape::kFull, dtype);
    spec.dtype = dtype;
    CaseData data(spec, 3);
    set_row(data.mask, 0, dtype == kHalf ? -65504 : -1e9);
    for (const std::int64_t column : {3, 5}) write(data.mask.view(), 0, 0, 0, column, -INFINITY);
    const cases::Expected oracle = cases::expected(data);
    run(data, true);
    data.lse = {};
    EXPECT_EQ(cases::forward_failures(data, oracle), std::vector<std::string>());
  }
}

// Unscaled scores of 16 bits overflow; so does the gradient under loss scaling.
TEST(AttentionGraphValues, LargeHalvesDoNotOverflow) {
  Case spec = plain();
  spec.dtype = kHalf;
  CaseData data(spec, 3);
  data.query.fill(100);
  data.key.fill(100);
  data.grad_out.fill(3000);
  data.value.fill(3);
  run(data, false);
  EXPECT_TRUE(all_finite(data.out) && all_finite(data.grad_query) && all_finite(data.grad_key));
}

// Sinks have a dtype of their own, as the trained ones of models do.
TEST(AttentionGraphValues, SinksOfAnotherDtypeAreReadAsTheyAre) {
  for (const bool has_descriptor : {false, true}) {
    Case spec = plain();
    spec.dtype = kBrain;
    spec.sinks = true;
    CaseData data(spec, 3);
    data.sinks = cases::Tensor(DType::kFloat32, {1, 2, 1, 1}, cases::Layout::kContiguous,
                               cases::Role::kInput);
    data.sinks.assign(std::vector<double>{1.0009765625, -2.000244140625});
    const cases::Expected oracle = cases::expected(data);
    const EvaluatedGraphs backend({}, has_descriptor);
    EXPECT_EQ(cases::check(backend, data, oracle).failures, std::vector<std::string>());
  }
}

TEST(AttentionGraphValues, EverythingDroppedGivesZero) {
  Case spec = plain();
  spec.dropout = 1;
  CaseData data(spec, 3);
  run(data, false);
  for (const cases::Tensor* each : {&data.out, &data.grad_query, &data.grad_value})
    for (const double x : each->values()) EXPECT_EQ(x, 0);
}

}  // namespace
}  // namespace sdpa::metal
