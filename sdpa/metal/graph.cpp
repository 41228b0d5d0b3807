// SPDX-License-Identifier: MIT
#include "sdpa/metal/graph.h"

#include <algorithm>
#include <array>
#include <sstream>
#include <stdexcept>

namespace sdpa::metal {
namespace {

constexpr std::array<std::string_view, 25> kOpNames{
    "input",     "constant",    "coordinate", "cast",     "reshape",  "broadcast", "transpose",
    "slice",     "concat",      "add",        "subtract", "multiply", "divide",    "maximum",
    "notEqual",  "lessOrEqual", "and",        "select",   "exponent", "logarithm", "tanh",
    "reduceMax", "reduceSum",   "matmul",     "attention"};

[[noreturn]] void refuse(Op op, const std::string& why) {
  throw std::logic_error(std::string(name(op)) + ": " + why);
}

void require(bool holds, Op op, const std::string& why) {
  if (!holds) refuse(op, why);
}

bool is_floating(Element element) {
  return element != Element::kBool && element != Element::kInt32;
}

bool is_comparison(Op op) { return op == Op::kNotEqual || op == Op::kLessOrEqual; }

std::size_t checked_axis(Op op, std::int64_t axis, const Shape& shape) {
  require(axis >= 0 && axis < static_cast<std::int64_t>(shape.size()), op,
          "axis " + std::to_string(axis) + " of " + to_string(shape));
  return static_cast<std::size_t>(axis);
}

void require_same(Op op, Element a, Element b) {
  require(a == b, op, std::string(name(a)) + " and " + std::string(name(b)) + " do not mix");
}

Shape leading(const Shape& shape) { return {shape.begin(), shape.end() - 2}; }

}  // namespace

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return Element::kFloat32;
    case DType::kFloat16:
      return Element::kFloat16;
    case DType::kBFloat16:
      return Element::kBFloat16;
    case DType::kBool:
      return Element::kBool;
    default:
      throw std::logic_error("MPSGraph has no " + std::string(sdpa::name(dtype)));
  }
}

std::string_view name(Element element) {
  constexpr std::array<std::string_view, 5> names{"float32", "float16", "bfloat16", "bool",
                                                  "int32"};
  return names[static_cast<std::size_t>(element)];
}

std::int64_t size_bytes(Element element) {
  if (element == Element::kBool) return 1;
  return element == Element::kFloat16 || element == Element::kBFloat16 ? 2 : 4;
}

std::string_view name(Op op) { return kOpNames[static_cast<std::size_t>(op)]; }

std::int64_t element_count(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return text + "]";
}

Shape broadcast_shape(const Shape& a, const Shape& b) {
  const Shape& longer = a.size() >= b.size() ? a : b;
  const Shape& shorter = a.size() >= b.size() ? b : a;
  Shape result = longer;
  const std::size_t offset = longer.size() - shorter.size();
  for (std::size_t n = 0; n < shorter.size(); ++n) {
    std::int64_t& extent = result[offset + n];
    if (extent == 1) extent = shorter[n];
    if (shorter[n] == 1 || shorter[n] == extent) continue;
    throw std::logic_error(to_string(a) + " and " + to_string(b) + " do not broadcast");
  }
  return result;
}

std::vector<NodeId> Graph::inputs() const {
  std::vector<NodeId> list;
  for (std::size_t n = 0; n < nodes_.size(); ++n) {
    if (nodes_[n].op == Op::kInput) list.push_back(static_cast<NodeId>(n));
  }
  return list;
}

NodeId Graph::add(Node node) {
  require(std::ranges::all_of(node.shape, [](std::int64_t extent) { return extent > 0; }), node.op,
          "an extent of zero in " + to_string(node.shape));
  nodes_.push_back(std::move(node));
  return static_cast<NodeId>(nodes_.size() - 1);
}

NodeId Graph::input(Role role, Element type, Shape shape) {
  return add({.op = Op::kInput, .type = type, .shape = std::move(shape), .role = role});
}

NodeId Graph::constant(double value, Element type, Shape shape) {
  return add({.op = Op::kConstant, .type = type, .shape = std::move(shape), .scalar = value});
}

NodeId Graph::coordinate(std::int64_t axis, Shape shape) {
  checked_axis(Op::kCoordinate, axis, shape);
  return add(
      {.op = Op::kCoordinate, .type = Element::kInt32, .shape = std::move(shape), .axis = axis});
}

NodeId Graph::cast(NodeId x, Element type) {
  if (at(x).type == type) return x;
  return add({.op = Op::kCast, .type = type, .shape = shape(x), .inputs = {x}});
}

NodeId Graph::reshape(NodeId x, Shape target) {
  if (shape(x) == target) return x;
  require(element_count(shape(x)) == element_count(target), Op::kReshape,
          to_string(shape(x)) + " to " + to_string(target));
  return add({.op = Op::kReshape, .type = at(x).type, .shape = std::move(target), .inputs = {x}});
}

NodeId Graph::broadcast(NodeId x, Shape target) {
  if (shape(x) == target) return x;
  require(broadcast_shape(shape(x), target) == target, Op::kBroadcast,
          to_string(shape(x)) + " to " + to_string(target));
  return add({.op = Op::kBroadcast, .type = at(x).type, .shape = std::move(target), .inputs = {x}});
}

NodeId Graph::transpose(NodeId x) {
  Shape target = shape(x);
  require(target.size() >= 2, Op::kTranspose, "of " + to_string(target));
  std::swap(target[target.size() - 1], target[target.size() - 2]);
  return add({.op = Op::kTranspose, .type = at(x).type, .shape = std::move(target), .inputs = {x}});
}

NodeId Graph::slice(NodeId x, std::int64_t axis, std::int64_t start, std::int64_t length) {
  Shape target = shape(x);
  std::int64_t& extent = target[checked_axis(Op::kSlice, axis, target)];
  if (start == 0 && length == extent) return x;
  require(start >= 0 && length > 0 && start + length <= extent, Op::kSlice,
          std::to_string(start) + " to " + std::to_string(start + length) + " of " +
              std::to_string(extent));
  extent = length;
  return add({.op = Op::kSlice,
              .type = at(x).type,
              .shape = std::move(target),
              .inputs = {x},
              .axis = axis,
              .start = start});
}

NodeId Graph::concat(const std::vector<NodeId>& parts, std::int64_t axis) {
  if (parts.size() == 1) return parts[0];
  Shape target = shape(parts.at(0));
  const std::size_t dim = checked_axis(Op::kConcat, axis, target);
  target[dim] = 0;
  for (const NodeId part : parts) {
    require_same(Op::kConcat, at(part).type, at(parts[0]).type);
    Shape same = shape(part);
    same[dim] = target[dim];
    require(same == target, Op::kConcat, to_string(shape(part)) + " beside " + to_string(target));
    target[dim] += shape(part)[dim];
  }
  return add({.op = Op::kConcat,
              .type = at(parts[0]).type,
              .shape = std::move(target),
              .inputs = parts,
              .axis = axis});
}

NodeId Graph::binary(Op op, NodeId a, NodeId b) {
  require_same(op, at(a).type, at(b).type);
  require((op == Op::kAnd) == (at(a).type == Element::kBool), op,
          "of " + std::string(name(at(a).type)));
  const bool gives_bool = is_comparison(op) || op == Op::kAnd;
  return add({.op = op,
              .type = gives_bool ? Element::kBool : at(a).type,
              .shape = broadcast_shape(shape(a), shape(b)),
              .inputs = {a, b}});
}

NodeId Graph::unary(Op op, NodeId x) {
  require(is_floating(at(x).type), op, "of " + std::string(name(at(x).type)));
  return add({.op = op, .type = at(x).type, .shape = shape(x), .inputs = {x}});
}

NodeId Graph::select(NodeId predicate, NodeId yes, NodeId no) {
  require(at(predicate).type == Element::kBool, Op::kSelect, "by no bool");
  require_same(Op::kSelect, at(yes).type, at(no).type);
  return add({.op = Op::kSelect,
              .type = at(yes).type,
              .shape = broadcast_shape(shape(predicate), broadcast_shape(shape(yes), shape(no))),
              .inputs = {predicate, yes, no}});
}

NodeId Graph::reduce(Op op, NodeId x, std::int64_t axis) {
  Shape target = shape(x);
  std::int64_t& extent = target[checked_axis(op, axis, target)];
  require(is_floating(at(x).type), op, "of " + std::string(name(at(x).type)));
  if (extent == 1) return x;
  extent = 1;
  return add(
      {.op = op, .type = at(x).type, .shape = std::move(target), .inputs = {x}, .axis = axis});
}

NodeId Graph::matmul(NodeId a, NodeId b) {
  const Shape &x = shape(a), &y = shape(b);
  require_same(Op::kMatmul, at(a).type, at(b).type);
  require(is_floating(at(a).type) && x.size() >= 2 && y.size() >= 2 &&
              x[x.size() - 1] == y[y.size() - 2],
          Op::kMatmul, to_string(x) + " by " + to_string(y));
  Shape target = broadcast_shape(leading(x), leading(y));
  target.insert(target.end(), {x[x.size() - 2], y.back()});
  return add({.op = Op::kMatmul, .type = at(a).type, .shape = std::move(target), .inputs = {a, b}});
}

NodeId Graph::attention(NodeId query, NodeId key, NodeId value, const AttentionOptions& options) {
  const Shape &q = shape(query), &k = shape(key), &v = shape(value);
  const auto fits = [&](const Shape& other, std::int64_t length) {
    return other.size() == 4 && other[0] == q[0] && other[1] == q[1] && other[2] == length;
  };
  require(q.size() == 4 && fits(k, k.at(2)) && fits(v, k.at(2)) && k[3] == q[3], Op::kAttention,
          to_string(q) + ", " + to_string(k) + ", " + to_string(v));
  Node node{.op = Op::kAttention,
            .type = at(query).type,
            .shape = {q[0], q[1], q[2], v[3]},
            .inputs = {query, key, value},
            .scalar = options.scale,
            .causal = options.causal,
            .has_mask = options.mask != kNoNode,
            .has_sinks = options.sinks != kNoNode};
  require(!(node.causal && node.has_mask), Op::kAttention, "causal and a mask exclude each other");
  if (node.has_mask) {
    const Shape scores{q[0], q[1], q[2], k[2]};
    require(broadcast_shape(shape(options.mask), scores) == scores, Op::kAttention,
            "mask " + to_string(shape(options.mask)) + " for " + to_string(scores));
    node.inputs.push_back(options.mask);
  }
  if (node.has_sinks) {
    require(shape(options.sinks) == Shape{q[1]}, Op::kAttention,
            "sinks " + to_string(shape(options.sinks)));
    node.inputs.push_back(options.sinks);
  }
  for (const NodeId input : node.inputs) require_same(Op::kAttention, at(input).type, node.type);
  return add(std::move(node));
}

std::string to_string(const Graph& graph) {
  std::ostringstream text;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    text << "%" << n << " = " << name(node.op);
    for (const NodeId input : node.inputs) text << " %" << input;
    if (node.op == Op::kInput) text << " " << name(node.role);
    if (node.op == Op::kConstant || node.op == Op::kAttention) text << " " << node.scalar;
    if (node.op == Op::kSlice) text << " from " << node.start;
    const bool has_axis = node.op == Op::kSlice || node.op == Op::kConcat ||
                          node.op == Op::kCoordinate || node.op == Op::kReduceMax ||
                          node.op == Op::kReduceSum;
    if (has_axis) text << " axis " << node.axis;
    if (node.causal) text << " causal";
    if (node.has_mask) text << " masked";
    if (node.has_sinks) text << " with sinks";
    text << " : " << name(node.type) << " " << to_string(node.shape) << "\n";
  }
  for (const GraphOutput& output : graph.outputs()) {
    text << name(output.role) << " = %" << output.node << "\n";
  }
  return text.str();
}

}  // namespace sdpa::metal
