// SPDX-License-Identifier: MIT
// Apple's rules for single nodes: what is inferred, and what is refused with which words.
#include "sdpa/metal/graph.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace sdpa::metal {
namespace {

constexpr Element kFloat = Element::kFloat32, kHalf = Element::kFloat16, kBool = Element::kBool;

template <typename Code>
std::string refusal(const Code& code) {
  try {
    code();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "none";
}

class GraphRules : public testing::Test {
 protected:
  NodeId input(Shape shape, Element type = kFloat) {
    return graph_.input(Role::kQuery, type, std::move(shape));
  }

  Graph graph_;
};

TEST_F(GraphRules, TypesDoNotMix) {
  const NodeId a = input({2, 3}), b = input({2, 3}, kHalf), c = input({2, 3}, kBool);
  EXPECT_EQ(refusal([&] { graph_.binary(Op::kAdd, a, b); }), "add: float32 and float16 do not mix");
  EXPECT_EQ(refusal([&] { graph_.select(c, a, b); }), "select: float32 and float16 do not mix");
  EXPECT_EQ(refusal([&] { graph_.concat({a, b}, 0); }), "concat: float16 and float32 do not mix");
  EXPECT_EQ(refusal([&] { graph_.binary(Op::kAdd, c, c); }), "add: of bool");
  EXPECT_EQ(refusal([&] { graph_.binary(Op::kAnd, a, a); }), "and: of float32");
  EXPECT_EQ(refusal([&] { graph_.reduce(Op::kReduceMax, c, 0); }), "reduceMax: of bool");
  EXPECT_EQ(refusal([&] { graph_.select(a, a, a); }), "select: by no bool");
  EXPECT_EQ(graph_.at(graph_.binary(Op::kNotEqual, a, a)).type, kBool);
}

TEST_F(GraphRules, ShapesBroadcastAsInNumPy) {
  const NodeId a = input({2, 1, 3}), b = input({4, 1}), c = input({5});
  EXPECT_EQ(graph_.shape(graph_.binary(Op::kAdd, a, b)), (Shape{2, 4, 3}));
  EXPECT_EQ(refusal([&] { graph_.binary(Op::kAdd, a, c); }), "[2, 1, 3] and [5] do not broadcast");
  EXPECT_EQ(graph_.shape(graph_.matmul(input({2, 1, 4, 3}), input({5, 3, 6}))),
            (Shape{2, 5, 4, 6}));
  EXPECT_EQ(refusal([&] { graph_.matmul(b, b); }), "matmul: [4, 1] by [4, 1]");
  EXPECT_EQ(refusal([&] { graph_.broadcast(a, {2, 4}); }), "[2, 1, 3] and [2, 4] do not broadcast");
  EXPECT_EQ(refusal([&] { graph_.reshape(a, {5}); }), "reshape: [2, 1, 3] to [5]");
  EXPECT_EQ(refusal([&] { graph_.slice(b, 0, 3, 2); }), "slice: 3 to 5 of 4");
  EXPECT_EQ(refusal([&] { graph_.reduce(Op::kReduceSum, b, 2); }), "reduceSum: axis 2 of [4, 1]");
  EXPECT_EQ(refusal([&] { graph_.concat({a, input({1, 1, 4})}, 0); }),
            "concat: [1, 1, 4] beside [2, 1, 3]");
  EXPECT_EQ(refusal([&] { input({0, 2}); }), "input: an extent of zero in [0, 2]");
}

TEST_F(GraphRules, TheOperatorWantsEqualHeadsAndOneMask) {
  const NodeId q = input({1, 4, 8, 16}), k = input({1, 4, 9, 16}), v = input({1, 4, 9, 32});
  EXPECT_EQ(graph_.shape(graph_.attention(q, k, v, {})), (Shape{1, 4, 8, 32}));
  EXPECT_NE(refusal([&] { graph_.attention(q, input({1, 2, 9, 16}), v, {}); }), "none");
  EXPECT_NE(refusal([&] { graph_.attention(q, k, input({1, 4, 8, 16}), {}); }), "none");
  EXPECT_EQ(refusal([&] { graph_.attention(q, k, v, {.mask = input({1, 4, 8, 8})}); }),
            "[1, 4, 8, 8] and [1, 4, 8, 9] do not broadcast");
  EXPECT_EQ(refusal([&] { graph_.attention(q, k, v, {.mask = input({1, 1, 1, 9}, kHalf)}); }),
            "attention: float16 and float32 do not mix");
  EXPECT_EQ(refusal([&] { graph_.attention(q, k, v, {.mask = input({8, 9}), .causal = true}); }),
            "attention: causal and a mask exclude each other");
  EXPECT_EQ(refusal([&] { graph_.attention(q, k, v, {.sinks = input({1, 4})}); }),
            "attention: sinks [1, 4]");
}

TEST_F(GraphRules, WhatChangesNothingIsNoNode) {
  const NodeId a = input({2, 1});
  EXPECT_EQ(graph_.cast(a, kFloat), a);
  EXPECT_EQ(graph_.reshape(a, {2, 1}), a);
  EXPECT_EQ(graph_.broadcast(a, {2, 1}), a);
  EXPECT_EQ(graph_.slice(a, 0, 0, 2), a);
  EXPECT_EQ(graph_.concat({a}, 0), a);
  EXPECT_EQ(graph_.reduce(Op::kReduceMax, a, 1), a);
}

TEST_F(GraphRules, IsPrinted) {
  const NodeId a = input({2, 4}, kHalf);
  graph_.output(Role::kOut, graph_.reduce(Op::kReduceSum, graph_.slice(a, 1, 1, 3), 1));
  EXPECT_EQ(to_string(graph_),
            "%0 = input query : float16 [2, 4]\n"
            "%1 = slice %0 from 1 axis 1 : float16 [2, 3]\n"
            "%2 = reduceSum %1 axis 1 : float16 [2, 1]\n"
            "out = %2\n");
}

}  // namespace
}  // namespace sdpa::metal
