// SPDX-License-Identifier: MIT
#include "tests/mpsgraph/evaluate.h"

#include <cmath>
#include <stdexcept>

namespace sdpa::values {
namespace {

using metal::Node;
using metal::NodeId;
using metal::Op;

class Evaluator {
 public:
  Evaluator(const metal::Graph& graph, const Tensors& inputs)
      : graph_(graph), inputs_(inputs), values_(graph.nodes().size()) {}

  Tensors run() {
    for (std::size_t n = 0; n < values_.size(); ++n) {
      const Node& node = graph_.nodes()[n];
      values_[n] = value_of(node);
      check(node, values_[n]);
    }
    Tensors outputs;
    for (const auto& [role, node] : graph_.outputs()) outputs[role] = of(node);
    return outputs;
  }

 private:
  const Value& of(NodeId id) const { return values_.at(static_cast<std::size_t>(id)); }

  static void check(const Node& node, const Value& value) {
    if (value.type == node.type && value.shape == node.shape) return;
    throw std::logic_error(std::string(metal::name(node.op)) + " gives " +
                           std::string(metal::name(value.type)) + metal::to_string(value.shape) +
                           ", the graph says " + std::string(metal::name(node.type)) +
                           metal::to_string(node.shape));
  }

  Value value_of(const Node& n) const {
    switch (n.op) {
      case Op::kInput:
        return inputs_.at(n.role);
      case Op::kConstant:
        return constant(n.scalar, n.type, n.shape);
      case Op::kCoordinate:
        return coordinate(static_cast<std::size_t>(n.axis), n.shape);
      case Op::kConcat:
        return joined(n);
      case Op::kSelect:
        return select(of(n.inputs[0]), of(n.inputs[1]), of(n.inputs[2]));
      case Op::kAttention:
        return attended(n);
      default:
        return n.inputs.size() == 1 ? unary(n, of(n.inputs[0]))
                                    : binary(n, of(n.inputs[0]), of(n.inputs[1]));
    }
  }

  Value unary(const Node& n, const Value& x) const {
    const auto axis = static_cast<std::size_t>(n.axis);
    switch (n.op) {
      case Op::kCast:
        return cast(x, n.type);
      case Op::kReshape:
        return reshape(x, n.shape);
      case Op::kBroadcast:
        return broadcast(x, n.shape);
      case Op::kTranspose:
        return transpose(x);
      case Op::kSlice:
        return slice(x, axis, n.start, n.shape[axis]);
      case Op::kExp:
        return map(x, [](double v) { return std::exp(v); });
      case Op::kLog:
        return map(x, [](double v) { return std::log(v); });
      case Op::kTanh:
        return map(x, [](double v) { return std::tanh(v); });
      case Op::kReduceMax:
        return reduce_max(x, axis);
      case Op::kReduceSum:
        return reduce_sum(x, axis);
      default:
        throw std::logic_error("no operation of one input");
    }
  }

  Value binary(const Node& n, const Value& a, const Value& b) const {
    const auto apply = [&](double (*function)(double, double)) {
      return combine(n.type, a, b, function);
    };
    switch (n.op) {
      case Op::kAdd:
        return apply([](double x, double y) { return x + y; });
      case Op::kSubtract:
        return apply([](double x, double y) { return x - y; });
      case Op::kMultiply:
        return apply([](double x, double y) { return x * y; });
      case Op::kDivide:
        return apply([](double x, double y) { return x / y; });
      case Op::kMaximum:
        return apply(maximum);
      case Op::kNotEqual:
        return apply([](double x, double y) { return double(x != y); });
      case Op::kLessOrEqual:
        return apply([](double x, double y) { return double(x <= y); });
      case Op::kAnd:
        return apply([](double x, double y) { return double(x != 0 && y != 0); });
      case Op::kMatmul:
        return matmul(a, b);
      default:
        throw std::logic_error("no operation of two inputs");
    }
  }

  Value joined(const Node& n) const {
    std::vector<const Value*> parts;
    for (const NodeId part : n.inputs) parts.push_back(&of(part));
    return concat(parts, static_cast<std::size_t>(n.axis));
  }

  Value attended(const Node& n) const {
    Attention options{.scale = n.scalar, .causal = n.causal};
    std::size_t next = 3;
    if (n.has_mask) options.mask = &of(n.inputs[next++]);
    if (n.has_sinks) options.sinks = &of(n.inputs[next]);
    return attention(of(n.inputs[0]), of(n.inputs[1]), of(n.inputs[2]), options);
  }

  const metal::Graph& graph_;
  const Tensors& inputs_;
  std::vector<Value> values_;
};

}  // namespace

Tensors evaluate(const metal::Graph& graph, const Tensors& inputs) {
  return Evaluator(graph, inputs).run();
}

}  // namespace sdpa::values
