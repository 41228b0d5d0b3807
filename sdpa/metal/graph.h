// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sdpa/dtype.h"
#include "sdpa/metal/plan.h"

/// A computation for MPSGraph, described as data.
///
/// A graph is a list of nodes, each made of earlier ones by one operation that Apple's class has
/// under one message. Shapes and types are inferred while it is built, by Apple's rules, and a node
/// that would break one is refused with a sentence. So what a graph computes can be printed,
/// compared and evaluated anywhere; mpsgraph.cpp only translates.
namespace sdpa::metal {

/// What the elements of a node are.
enum class Element : std::uint8_t { kFloat32, kFloat16, kBFloat16, kBool, kInt32 };

Element element_of(DType dtype);
std::string_view name(Element element);
std::int64_t size_bytes(Element element);

enum class Op : std::uint8_t {
  kInput,       ///< a tensor of the call, by its role
  kConstant,    ///< one number everywhere
  kCoordinate,  ///< int32: the index along `axis`
  kCast,
  kReshape,
  kBroadcast,
  kTranspose,  ///< of the last two dimensions
  kSlice,      ///< of `axis`, from `start` on
  kConcat,     ///< along `axis`
  kAdd,        ///< the two-sided ones broadcast as in NumPy
  kSubtract,
  kMultiply,
  kDivide,
  kMaximum,  ///< NaN where either is
  kNotEqual,
  kLessOrEqual,
  kAnd,
  kSelect,  ///< predicate, where it holds, where it does not
  kExp,
  kLog,
  kTanh,
  kReduceMax,  ///< over `axis`, which stays with extent 1; NaN where one is
  kReduceSum,
  kMatmul,     ///< of the last two dimensions; the others broadcast
  kAttention,  ///< Apple's operator: query, key, value, mask and sinks where present
};

std::string_view name(Op op);

using Shape = std::vector<std::int64_t>;

std::int64_t element_count(const Shape& shape);
std::string to_string(const Shape& shape);

/// A node by its place in the list.
using NodeId = int;
inline constexpr NodeId kNoNode = -1;

struct Node {
  Op op = Op::kInput;
  Element type = Element::kFloat32;
  Shape shape = {};
  std::vector<NodeId> inputs = {};
  Role role = Role::kQuery;  ///< of an input
  std::int64_t axis = 0;
  std::int64_t start = 0;
  double scalar = 0;      ///< of a constant; the scale of an attention
  bool causal = false;    ///< of an attention, as are the next two: which inputs follow value
  bool has_mask = false;  ///< added to the scores
  bool has_sinks = false;

  bool operator==(const Node&) const = default;
};

/// A result under the role of the tensor that it is for.
struct GraphOutput {
  Role role;
  NodeId node;

  bool operator==(const GraphOutput&) const = default;
};

/// The options of Apple's operator.
struct AttentionOptions {
  double scale = 1;
  NodeId mask = kNoNode;
  bool causal = false;     ///< macOS 27
  NodeId sinks = kNoNode;  ///< macOS 27: one logit a head, [heads]
};

/// Throws std::logic_error where a node breaks a rule: the code that builds graphs is wrong then.
class Graph {
 public:
  const std::vector<Node>& nodes() const { return nodes_; }

  const std::vector<GraphOutput>& outputs() const { return outputs_; }

  const Node& at(NodeId id) const { return nodes_.at(static_cast<std::size_t>(id)); }

  const Shape& shape(NodeId id) const { return at(id).shape; }

  /// The inputs in the order in which they were made.
  std::vector<NodeId> inputs() const;

  NodeId input(Role role, Element type, Shape shape);
  NodeId constant(double value, Element type, Shape shape = {1});
  NodeId coordinate(std::int64_t axis, Shape shape);
  NodeId cast(NodeId x, Element type);
  NodeId reshape(NodeId x, Shape shape);
  NodeId broadcast(NodeId x, Shape shape);
  NodeId transpose(NodeId x);
  NodeId slice(NodeId x, std::int64_t axis, std::int64_t start, std::int64_t length);
  NodeId concat(const std::vector<NodeId>& parts, std::int64_t axis);
  NodeId binary(Op op, NodeId a, NodeId b);
  NodeId unary(Op op, NodeId x);
  NodeId select(NodeId predicate, NodeId yes, NodeId no);
  NodeId reduce(Op op, NodeId x, std::int64_t axis);
  NodeId matmul(NodeId a, NodeId b);
  NodeId attention(NodeId query, NodeId key, NodeId value, const AttentionOptions& options);

  void output(Role role, NodeId node) { outputs_.push_back({role, node}); }

  bool operator==(const Graph&) const = default;

 private:
  NodeId add(Node node);

  std::vector<Node> nodes_;
  std::vector<GraphOutput> outputs_;
};

/// One line a node: "%7 = multiply %3 %6 : float32 [1, 2, 8, 8]".
std::string to_string(const Graph& graph);

/// The shape that both broadcast to. Throws std::logic_error where they do not.
Shape broadcast_shape(const Shape& a, const Shape& b);

}  // namespace sdpa::metal
