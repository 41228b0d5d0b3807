// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <vector>

#include "sdpa/metal/graph.h"

/// MPSGraph's operations in double, each result rounded to the type of its elements: what is lost
/// in 16 bits, and what overflows there, shows. Both the evaluator of described graphs and the fake
/// MPSGraph compute with these.
namespace sdpa::values {

using metal::Element;
using metal::Shape;

/// A tensor in row-major order, of rank 4 at most.
struct Value {
  Element type = Element::kFloat32;
  Shape shape = {};
  std::vector<double> data = {};
};

double rounded(Element type, double value);

Value constant(double value, Element type, Shape shape);
Value coordinate(std::size_t axis, Shape shape);
Value cast(const Value& x, Element type);
Value reshape(const Value& x, Shape shape);
Value broadcast(const Value& x, const Shape& shape);
Value transpose(const Value& x);
Value slice(const Value& x, std::size_t axis, std::int64_t start, std::int64_t length);
Value concat(const std::vector<const Value*>& parts, std::size_t axis);
Value map(const Value& x, const std::function<double(double)>& function);

/// Both broadcast to one shape.
Value combine(Element type, const Value& a, const Value& b, double (*function)(double, double));
Value select(const Value& predicate, const Value& yes, const Value& no);
Value reduce_max(const Value& x, std::size_t axis);
Value reduce_sum(const Value& x, std::size_t axis);
Value matmul(const Value& a, const Value& b);

double maximum(double a, double b);  // NaN where either is

struct Attention {
  double scale = 1;
  const Value* mask = nullptr;
  const Value* sinks = nullptr;
  bool causal = false;
};

/// Apple's operator, as its header says: softmax(scale Q K^T + M) V. A row of -infinity is NaN.
Value attention(const Value& q, const Value& k, const Value& v, const Attention& options);

}  // namespace sdpa::values
