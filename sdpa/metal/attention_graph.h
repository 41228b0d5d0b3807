// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "sdpa/metal/graph.h"
#include "sdpa/problem.h"

/// Attention as graphs for MPSGraph: the mathematics of reference.cpp in Apple's operations.
///
/// Forward is Apple's own operator where it can say what is asked, else written out, as is
/// backward. What is written out computes in float32 whatever the tensors hold, keeps the maximum
/// and the sum of a row apart (there is no softMax node: macOS 15 rewrites matmul, softMax, matmul
/// into a kernel that gives NaN), and walks the queries in blocks. Masks from causality and window
/// are made of coordinates on the device, one block at a time.
///
/// Heads that share keys are no copies: the queries of a group lie one head after the other, so
/// [batch, q_heads, q_len, dim] is [batch, kv_heads, group * q_len, dim] by another reading.
namespace sdpa::metal {

/// Sizes that keep a graph inside what MPSGraph computes right. Tests make them small.
struct GraphLimits {
  /// Scores alive at a time, written out: 64 Mi float32 are 256 MiB. A guess, not measured.
  std::int64_t block_scores = std::int64_t{1} << 26;
  /// Scores of one call of Apple's operator: past 2^32 they are silently wrong, past 2^31 some
  /// releases crash. A mask of them in float32 is within `array_bytes`.
  std::int64_t operator_scores = (std::int64_t{1} << 30) - 1;
  /// Keys of one call of Apple's operator: its second product sums over them, and what is said of
  /// `reduction` may hold within it.
  std::int64_t operator_keys = 32766;
  /// Queries of a block where causality or a window hides keys: what is hidden from all of them is
  /// not computed. A guess, not measured.
  std::int64_t banded_rows = 1024;
  /// The longest sum of a product: M1 and M2 read past the end from 32 767 on.
  std::int64_t reduction = 16384;
  /// Blocks of one graph; a graph of more nodes takes long to compile.
  std::int64_t blocks = 64;
  /// (M + 2K) N of a product of M x K by K x N, in bytes: from 2^31 on MPSMatrixMultiplication,
  /// which MPSGraph may use, gives wrong numbers.
  std::int64_t product_bytes = (std::int64_t{1} << 31) - 1;
  /// Bytes of one array: macOS 15 stops the process past 2^32.
  std::int64_t array_bytes = (std::int64_t{1} << 32) - 1;
};

/// All that shapes a graph: two calls with equal specifications share one.
struct GraphSpec {
  Problem problem;
  Pass pass = Pass::kForward;
  DType sinks_dtype = DType::kFloat32;  ///< where there are sinks
  std::array<std::int64_t, 4> mask{};   ///< its extents, 1 where it broadcasts; 0 without one
  bool lse = false;                     ///< forward: the log-sum-exp is asked for
  bool grad_lse = false;                ///< backward: it has a gradient
  bool grad_query = false, grad_key = false, grad_value = false;
  bool grad_sinks = false;
  std::array<std::int64_t, 4> grad_mask{};  ///< its extents; 0 where it is not wanted

  bool wants_grad_mask() const { return grad_mask[0] > 0; }

  bool has_descriptor = false;  ///< the system has MPSGraphSDPADescriptor (macOS 27)
  GraphLimits limits = {};
};

GraphSpec spec_of(const Problem& problem, const ForwardTensors& tensors);
GraphSpec spec_of(const Problem& problem, const BackwardTensors& tensors);

/// Every field that shapes the graph, as a text for caches. What does not (addresses, the seed of
/// dropout) is left out.
std::string key_of(const GraphSpec& spec);

/// Full sentences that say why MPSGraph cannot run a problem; none if it can.
std::vector<std::string> graph_refusals(const Problem& problem, const GraphLimits& limits = {});

/// Whether the forward pass is Apple's operator and not written out.
bool uses_operator(const GraphSpec& spec);

/// The graph of a specification that is not refused and not empty.
Graph make_graph(const GraphSpec& spec);

/// A part of a call that one graph computes: some entries of the batch, or some heads of one.
struct Piece {
  std::int64_t first_batch = 0, batches = 0;
  std::int64_t first_kv_head = 0, kv_heads = 0;
};

/// The parts whose scores and arrays fit. One, if all do. Throws std::runtime_error where a mask of
/// one head is too large an array: that is not known before its extents are.
std::vector<Piece> pieces_of(const GraphSpec& spec);

/// The problem and the tensors of one part.
Problem restricted(Problem problem, const Piece& piece);
ForwardTensors restricted(const Problem& problem, ForwardTensors tensors, const Piece& piece);
BackwardTensors restricted(const Problem& problem, BackwardTensors tensors, const Piece& piece);

}  // namespace sdpa::metal
