// SPDX-License-Identifier: MIT
#include "tests/mpsgraph/values.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace sdpa::values {
namespace {

using Index4 = std::array<std::int64_t, 4>;

Index4 padded(const Shape& shape) {
  Index4 result{1, 1, 1, 1};
  std::copy_backward(shape.begin(), shape.end(), result.end());
  return result;
}

/// The strides to walk `shape` in step with a larger one: 0 where it broadcasts.
Index4 strides_within(const Shape& shape) {
  const Index4 n = padded(shape);
  Index4 result{};
  std::int64_t stride = 1;
  for (std::size_t dim = 4; dim-- > 0;) {
    result[dim] = n[dim] == 1 ? 0 : stride;
    stride *= n[dim];
  }
  return result;
}

/// Calls visit(offset) with the offset in each of several operands for every element of a shape.
template <std::size_t count, typename Visit>
void walk(const Shape& shape, const std::array<Index4, count>& strides, const Visit& visit) {
  const Index4 n = padded(shape);
  std::array<std::int64_t, count> at{};
  const auto offsets = [&](std::size_t dim, std::int64_t i, std::array<std::int64_t, count> from) {
    for (std::size_t c = 0; c < count; ++c) from[c] += i * strides[c][dim];
    return from;
  };
  for (std::int64_t i = 0; i < n[0]; ++i) {
    const auto a = offsets(0, i, at);
    for (std::int64_t j = 0; j < n[1]; ++j) {
      const auto b = offsets(1, j, a);
      for (std::int64_t k = 0; k < n[2]; ++k) {
        const auto c = offsets(2, k, b);
        for (std::int64_t l = 0; l < n[3]; ++l) visit(offsets(3, l, c));
      }
    }
  }
}

/// A shape around one axis: what is before it, its extent, what is after it.
struct Around {
  std::int64_t before = 1, extent = 1, after = 1;

  Around(const Shape& shape, std::size_t axis) : extent(shape.at(axis)) {
    for (std::size_t n = 0; n < shape.size(); ++n) {
      if (n != axis) (n < axis ? before : after) *= shape[n];
    }
  }
};

Value empty(Element type, Shape shape) {
  Value result{type, std::move(shape), {}};
  result.data.reserve(static_cast<std::size_t>(metal::element_count(result.shape)));
  return result;
}

template <typename Step>
Value reduce(const Value& x, std::size_t axis, double start, const Step& step) {
  const Around n(x.shape, axis);
  Value result = empty(x.type, x.shape);
  result.shape[axis] = 1;
  for (std::int64_t i = 0; i < n.before; ++i) {
    for (std::int64_t k = 0; k < n.after; ++k) {
      double sum = start;
      for (std::int64_t j = 0; j < n.extent; ++j) {
        sum = step(sum, x.data[static_cast<std::size_t>((i * n.extent + j) * n.after + k)]);
      }
      result.data.push_back(rounded(x.type, sum));
    }
  }
  return result;
}

}  // namespace

double rounded(Element type, double value) {
  const auto narrow = static_cast<float>(value);
  switch (type) {
    case Element::kFloat32:
      return narrow;
    case Element::kFloat16:
      return to_float(to_float16(narrow));
    case Element::kBFloat16:
      return to_float(to_bfloat16(narrow));
    case Element::kBool:
      return value != 0;
    default:
      return std::trunc(value);
  }
}

double maximum(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<double>::quiet_NaN();
  return std::max(a, b);
}

Value constant(double value, Element type, Shape shape) {
  Value result = empty(type, std::move(shape));
  result.data.assign(static_cast<std::size_t>(metal::element_count(result.shape)),
                     rounded(type, value));
  return result;
}

Value coordinate(std::size_t axis, Shape shape) {
  const Around n(shape, axis);
  Value result = empty(Element::kInt32, std::move(shape));
  for (std::int64_t i = 0; i < n.before; ++i) {
    for (std::int64_t j = 0; j < n.extent; ++j) {
      result.data.insert(result.data.end(), static_cast<std::size_t>(n.after),
                         static_cast<double>(j));
    }
  }
  return result;
}

Value cast(const Value& x, Element type) {
  Value result = empty(type, x.shape);
  for (const double value : x.data) result.data.push_back(rounded(type, value));
  return result;
}

Value reshape(const Value& x, Shape shape) { return {x.type, std::move(shape), x.data}; }

Value broadcast(const Value& x, const Shape& shape) {
  Value result = empty(x.type, shape);
  walk<1>(shape, {strides_within(x.shape)},
          [&](const auto& at) { result.data.push_back(x.data[static_cast<std::size_t>(at[0])]); });
  return result;
}

Value transpose(const Value& x) {
  Value result = x;
  std::swap(result.shape[x.shape.size() - 1], result.shape[x.shape.size() - 2]);
  const std::int64_t rows = x.shape[x.shape.size() - 2], columns = x.shape.back();
  for (std::size_t n = 0; n < x.data.size(); ++n) {
    const auto at = static_cast<std::int64_t>(n);
    const std::int64_t matrix = at / (rows * columns), rest = at % (rows * columns);
    const std::int64_t to = matrix * rows * columns + rest % columns * rows + rest / columns;
    result.data[static_cast<std::size_t>(to)] = x.data[n];
  }
  return result;
}

Value slice(const Value& x, std::size_t axis, std::int64_t start, std::int64_t length) {
  const Around n(x.shape, axis);
  Value result = empty(x.type, x.shape);
  result.shape[axis] = length;
  for (std::int64_t i = 0; i < n.before; ++i) {
    const auto from = x.data.begin() + (i * n.extent + start) * n.after;
    result.data.insert(result.data.end(), from, from + length * n.after);
  }
  return result;
}

Value concat(const std::vector<const Value*>& parts, std::size_t axis) {
  Value result = empty(parts.at(0)->type, parts[0]->shape);
  result.shape[axis] = 0;
  for (const Value* part : parts) result.shape[axis] += part->shape[axis];
  const Around whole(result.shape, axis);
  for (std::int64_t i = 0; i < whole.before; ++i) {
    for (const Value* part : parts) {
      const std::int64_t count = part->shape[axis] * whole.after;
      const auto from = part->data.begin() + i * count;
      result.data.insert(result.data.end(), from, from + count);
    }
  }
  return result;
}

Value map(const Value& x, const std::function<double(double)>& function) {
  Value result = empty(x.type, x.shape);
  for (const double value : x.data) result.data.push_back(rounded(x.type, function(value)));
  return result;
}

Value combine(Element type, const Value& a, const Value& b, double (*function)(double, double)) {
  Value result = empty(type, metal::broadcast_shape(a.shape, b.shape));
  walk<2>(result.shape, {strides_within(a.shape), strides_within(b.shape)}, [&](const auto& at) {
    result.data.push_back(rounded(type, function(a.data[static_cast<std::size_t>(at[0])],
                                                 b.data[static_cast<std::size_t>(at[1])])));
  });
  return result;
}

Value select(const Value& predicate, const Value& yes, const Value& no) {
  Value result = empty(yes.type, metal::broadcast_shape(
                                     predicate.shape, metal::broadcast_shape(yes.shape, no.shape)));
  walk<3>(result.shape,
          {strides_within(predicate.shape), strides_within(yes.shape), strides_within(no.shape)},
          [&](const auto& at) {
            const bool holds = predicate.data[static_cast<std::size_t>(at[0])] != 0;
            result.data.push_back(holds ? yes.data[static_cast<std::size_t>(at[1])]
                                        : no.data[static_cast<std::size_t>(at[2])]);
          });
  return result;
}

Value reduce_max(const Value& x, std::size_t axis) {
  return reduce(x, axis, -std::numeric_limits<double>::infinity(), maximum);
}

Value reduce_sum(const Value& x, std::size_t axis) {
  return reduce(x, axis, 0, [](double sum, double next) { return sum + next; });
}

Value matmul(const Value& a, const Value& b) {
  const std::size_t rank = std::max(a.shape.size(), b.shape.size());
  const Index4 x = padded(a.shape), y = padded(b.shape);
  Shape shape = metal::broadcast_shape({x[0], x[1]}, {y[0], y[1]});
  Value result = empty(a.type, {shape[0], shape[1], x[2], y[3]});
  std::vector<double> row(static_cast<std::size_t>(y[3]));
  const std::int64_t a_size = x[2] * x[3], b_size = y[2] * y[3];
  const auto offset = [](const Index4& n, std::int64_t i, std::int64_t j, std::int64_t size) {
    return ((n[0] == 1 ? 0 : i) * n[1] + (n[1] == 1 ? 0 : j)) * size;
  };
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    for (std::int64_t j = 0; j < shape[1]; ++j) {
      const double* left = a.data.data() + offset(x, i, j, a_size);
      const double* right = b.data.data() + offset(y, i, j, b_size);
      for (std::int64_t r = 0; r < x[2]; ++r) {
        std::fill(row.begin(), row.end(), 0.0);
        for (std::int64_t k = 0; k < x[3]; ++k) {
          for (std::int64_t c = 0; c < y[3]; ++c) {
            row[static_cast<std::size_t>(c)] += left[r * x[3] + k] * right[k * y[3] + c];
          }
        }
        for (const double sum : row) result.data.push_back(rounded(a.type, sum));
      }
    }
  }
  result.shape.erase(result.shape.begin(), result.shape.end() - static_cast<std::ptrdiff_t>(rank));
  return result;
}

namespace {

struct Row {
  const Value& q;
  const Value& k;
  const Value& v;
  const Attention& options;
  const Value* mask;  // of the full shape

  std::vector<double> scores(std::int64_t head, std::int64_t i) const {
    const std::int64_t dim = q.shape[3], keys = k.shape[2], rows = q.shape[2];
    std::vector<double> result(static_cast<std::size_t>(keys));
    for (std::int64_t j = 0; j < keys; ++j) {
      double sum = 0;
      for (std::int64_t d = 0; d < dim; ++d) {
        sum += q.data[static_cast<std::size_t>((head * rows + i) * dim + d)] *
               k.data[static_cast<std::size_t>((head * keys + j) * dim + d)];
      }
      sum *= options.scale;
      if (mask) sum += mask->data[static_cast<std::size_t>((head * rows + i) * keys + j)];
      if (options.causal && j > i) sum = -std::numeric_limits<double>::infinity();
      result[static_cast<std::size_t>(j)] = sum;
    }
    return result;
  }

  void append(std::int64_t head, std::int64_t i, std::vector<double>& out) const {
    std::vector<double> p = scores(head, i);
    const double sink = options.sinks
                            ? options.sinks->data[static_cast<std::size_t>(head % q.shape[1])]
                            : -std::numeric_limits<double>::infinity();
    double top = sink, sum = 0;
    for (const double score : p) top = maximum(top, score);
    for (double& score : p) sum += score = std::exp(score - top);
    if (options.sinks) sum += std::exp(sink - top);
    const std::int64_t keys = k.shape[2], width = v.shape[3];
    for (std::int64_t d = 0; d < width; ++d) {
      double value = 0;
      for (std::int64_t j = 0; j < keys; ++j) {
        value += p[static_cast<std::size_t>(j)] / sum *
                 v.data[static_cast<std::size_t>((head * keys + j) * width + d)];
      }
      out.push_back(rounded(q.type, value));
    }
  }
};

}  // namespace

Value attention(const Value& q, const Value& k, const Value& v, const Attention& options) {
  Value mask;
  if (options.mask) {
    mask = broadcast(*options.mask, {q.shape[0], q.shape[1], q.shape[2], k.shape[2]});
  }
  const Row row{q, k, v, options, options.mask ? &mask : nullptr};
  Value result = empty(q.type, {q.shape[0], q.shape[1], q.shape[2], v.shape[3]});
  for (std::int64_t head = 0; head < q.shape[0] * q.shape[1]; ++head) {
    for (std::int64_t i = 0; i < q.shape[2]; ++i) row.append(head, i, result.data);
  }
  return result;
}

}  // namespace sdpa::values
