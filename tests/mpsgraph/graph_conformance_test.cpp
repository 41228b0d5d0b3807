// SPDX-License-Identifier: MIT
//
// Named cases through the described graphs, evaluated in double with each node rounded to its
// type, against the oracle: whole, in small blocks with short sums, and with macOS 27's operator.
// It is a part of the cases, as mpsgraph_backend_test evaluates the graphs of all of them.
#include "tests/mpsgraph/graph_conformance.h"

#include "tests/mpsgraph/evaluated_graphs.h"

namespace sdpa::values {
namespace {

using cases::check_without_lse;

TEST(GraphConformance, WrittenOut) { cases::sweep(EvaluatedGraphs({}, false), 3); }

TEST(GraphConformance, WithTheOperator) {
  cases::sweep(EvaluatedGraphs({}, false), 4, check_without_lse);
}

TEST(GraphConformance, WithTheDescriptor) {
  cases::sweep(EvaluatedGraphs({}, true), 7, check_without_lse);
}

constexpr metal::GraphLimits kSmall{.block_scores = 64 * 64,
                                    .operator_scores = 1 << 14,
                                    .banded_rows = 24,
                                    .reduction = 20,
                                    .blocks = 9};

TEST(GraphConformance, InSmallBlocks) { cases::sweep(EvaluatedGraphs(kSmall, false), 5); }

TEST(GraphConformance, InSmallBlocksWithTheOperator) {
  cases::sweep(EvaluatedGraphs(kSmall, true), 7, check_without_lse);
}

}  // namespace
}  // namespace sdpa::values
