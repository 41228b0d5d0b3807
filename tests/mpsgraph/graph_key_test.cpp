// SPDX-License-Identifier: MIT
//
// The key under which a compiled graph is kept: every field of what a graph is made from is changed
// in turn, and either the key changes too or the graph is the same. A field that is added to one of
// the structures does not compile here before it is listed.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <optional>
#include <set>
#include <stdexcept>

#include "sdpa/metal/attention_graph.h"

namespace sdpa::metal {
namespace {

/// Calls `visit(name, change)` for every way to change a field, with the changed field in place.
class Fields {
 public:
  using Visit = std::function<void(const std::string& name)>;

  Fields(GraphSpec& spec, Visit visit) : spec_(spec), visit_(std::move(visit)) {}

  void visit_all() {
    auto& [problem, pass, sinks_dtype, mask, lse, grad_lse, grad_query, grad_key, grad_value,
           grad_sinks, grad_mask, has_descriptor, limits] = spec_;
    visit_problem(problem);
    change("pass", pass, pass == Pass::kForward ? Pass::kBackward : Pass::kForward);
    change("sinks_dtype", sinks_dtype, DType::kBFloat16);
    visit_extents("mask", mask);
    flip("lse", lse);
    flip("grad_lse", grad_lse);
    flip("grad_query", grad_query);
    flip("grad_key", grad_key);
    flip("grad_value", grad_value);
    flip("grad_sinks", grad_sinks);
    visit_extents("grad_mask", grad_mask);
    flip("has_descriptor", has_descriptor);
    visit_limits(limits);
  }

 private:
  template <typename Value>
  void change(const std::string& name, Value& field, Value value) {
    const Value before = field;
    if (before == value) return;
    field = value;
    visit_(name);
    field = before;
  }

  void flip(const std::string& name, bool& field) { change(name, field, !field); }

  void visit_problem(Problem& problem) {
    auto& [dtype, device, batch, q_heads, kv_heads, q_len, kv_len, qk_dim, v_dim, scale, causal,
           window, softcap, mask, mask_dtype, mask_varies_by_query, has_sinks, dropout] = problem;
    change("dtype", dtype, DType::kFloat16);
    change("dtype", dtype, DType::kBFloat16);
    change("device", device, Device::kMetal);
    change("batch", batch, batch + 1);
    change("q_heads", q_heads, 2 * q_heads);
    change("kv_heads", kv_heads, 2 * kv_heads);
    change("q_len", q_len, q_len + 1);
    change("kv_len", kv_len, kv_len + 1);
    change("qk_dim", qk_dim, qk_dim + 1);
    change("v_dim", v_dim, v_dim + 1);
    change("scale", scale, std::nextafter(scale, 1.0));
    change("causal", causal, Causal::kUpperLeft);
    change("causal", causal, Causal::kLowerRight);
    auto& [left, right] = window;
    change("window.left", left, std::int64_t{3});
    change("window.right", right, std::int64_t{3});
    change("softcap", softcap, 3.0);
    change("softcap", softcap, 3.5);
    change("mask", mask, MaskKind::kNone);
    change("mask", mask, MaskKind::kBool);
    change("mask", mask, MaskKind::kAdditive);
    change("mask_dtype", mask_dtype, DType::kFloat16);
    flip("mask_varies_by_query", mask_varies_by_query);
    flip("has_sinks", has_sinks);
    auto& [probability, seed, offset, first_head] = dropout;
    change("dropout.probability", probability, 0.1);
    change("dropout.probability", probability, 0.2);
    change("dropout.seed", seed, seed + 1);
    change("dropout.offset", offset, offset + 1);
    change("dropout.first_head", first_head, first_head + 1);
  }

  void visit_extents(const std::string& name, std::array<std::int64_t, 4>& extents) {
    for (std::int64_t& extent : extents) change(name, extent, extent == 1 ? 2 : std::int64_t{1});
  }

  void visit_limits(GraphLimits& limits) {
    auto& [block_scores, operator_scores, operator_keys, banded_rows, reduction, blocks,
           product_bytes, array_bytes] = limits;
    change("block_scores", block_scores, block_scores / 2);
    change("operator_scores", operator_scores, operator_scores / 2);
    change("operator_keys", operator_keys, std::int64_t{10});
    change("banded_rows", banded_rows, banded_rows / 2);
    change("reduction", reduction, reduction / 2);
    change("blocks", blocks, std::int64_t{1});
    change("product_bytes", product_bytes, std::int64_t{4000});
    change("array_bytes", array_bytes, array_bytes / 2);
  }

  GraphSpec& spec_;
  const Visit visit_;
};

/// A graph, or none where the fields contradict each other.
std::optional<Graph> graph_of(const GraphSpec& spec) {
  try {
    return make_graph(spec);
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

Problem small_problem() {
  return {.batch = 1,
          .q_heads = 4,
          .kv_heads = 2,
          .q_len = 40,
          .kv_len = 70,
          .qk_dim = 16,
          .v_dim = 16,
          .scale = 0.25};
}

constexpr GraphLimits kSmall{.block_scores = 4 * 70 * 16,
                             .operator_scores = 4 * 70 * 16,
                             .banded_rows = 12,
                             .reduction = 40,
                             .blocks = 40};

GraphSpec forward_spec() { return {.problem = small_problem(), .limits = kSmall}; }

GraphSpec causal_spec() {
  GraphSpec spec = forward_spec();
  spec.problem.causal = Causal::kUpperLeft;
  spec.problem.kv_heads = 4;
  spec.problem.kv_len = spec.problem.q_len;
  spec.limits.operator_scores = 1 << 20;
  return spec;
}

GraphSpec backward_spec() {
  GraphSpec spec = forward_spec();
  spec.problem.mask = MaskKind::kAdditive;
  spec.problem.mask_dtype = DType::kFloat32;
  spec.problem.has_sinks = true;
  spec.problem.dropout.probability = 0.5;
  spec.pass = Pass::kBackward;
  spec.mask = spec.grad_mask = {1, 1, 40, 70};
  spec.grad_query = spec.grad_key = spec.grad_value = spec.grad_sinks = true;
  return spec;
}

TEST(GraphKey, ChangesWithWhateverChangesTheGraph) {
  std::set<std::string> with_effect, all;
  for (const GraphSpec& base : {forward_spec(), causal_spec(), backward_spec()}) {
    const std::string key = key_of(base);
    const std::optional<Graph> graph = graph_of(base);
    ASSERT_TRUE(graph);
    GraphSpec spec = base;
    Fields(spec, [&](const std::string& name) {
      all.insert(name);
      const std::optional<Graph> changed = graph_of(spec);
      if (changed == graph) return;
      with_effect.insert(name);
      EXPECT_NE(key_of(spec), key) << name;
    }).visit_all();
    EXPECT_EQ(key_of(spec), key);
  }
  // What a graph does not depend on: the rest is not in the key for nothing.
  for (const std::string& name : with_effect) all.erase(name);
  EXPECT_EQ(all, (std::set<std::string>{"array_bytes", "device", "dropout.first_head",
                                        "dropout.offset", "dropout.seed", "mask_varies_by_query"}));
}

// What does not shape a graph does not make another one: a training step draws a new seed.
TEST(GraphKey, LeavesOutWhatDoesNotShapeTheGraph) {
  for (const GraphSpec& base : {forward_spec(), backward_spec()}) {
    GraphSpec spec = base;
    spec.problem.dropout.seed = 5;
    spec.problem.dropout.offset = 6;
    spec.problem.dropout.first_head = 7;
    EXPECT_EQ(key_of(spec), key_of(base));
  }
}

}  // namespace
}  // namespace sdpa::metal
