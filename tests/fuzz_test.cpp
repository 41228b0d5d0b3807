// SPDX-License-Identifier: MIT
//
// Random calls at the door, right and wrong ones: each either is refused with a sentence or gives
// what the oracle gives for one batch entry at a time, with every instruction set. The walk depends
// on a fixed seed alone; SDPA_FUZZ_SEED=n takes another walk, and SDPA_FUZZ_CALL=n only one step of
// it, which is what a failure says to do.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <optional>
#include <random>

#include "sdpa/attention.h"
#include "sdpa/element.h"
#include "sdpa/reference.h"
#include "tests/conformance.h"

namespace sdpa::cases {
namespace {

using Shape = std::vector<std::int64_t>;

/// Choices of the walk.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : generator_(seed) {}

  std::int64_t below(std::int64_t count) {
    return static_cast<std::int64_t>(generator_() % static_cast<std::uint64_t>(count));
  }

  bool one_in(std::int64_t count) { return below(count) == 0; }

  double normal() { return normal_(generator_); }

  template <typename T>
  T any_of(std::initializer_list<T> list) {
    return list.begin()[below(static_cast<std::int64_t>(list.size()))];
  }

  template <typename Iterator>
  void shuffle(Iterator first, Iterator last) {
    std::shuffle(first, last, generator_);
  }

 private:
  std::mt19937_64 generator_;
  std::normal_distribution<double> normal_;
};

/// A tensor of any rank; its memory ends with its last element.
struct Block {
  std::vector<std::byte> memory;
  TensorView view;

  void bind(std::int64_t offset) { view.data = memory.data() + offset * size_bytes(view.dtype); }
};

/// Strides in a random order of dimensions, with gaps; inputs may repeat a dimension by a stride of
/// 0.
void place(Dice& dice, TensorView& view, bool may_repeat) {
  std::vector<int> order(static_cast<std::size_t>(view.rank));
  std::iota(order.rbegin(), order.rend(), 0);
  if (dice.one_in(2)) dice.shuffle(order.begin(), order.end());
  std::int64_t stride = dice.one_in(8) ? 2 : 1;
  for (int dim : order) {
    view.strides[dim] = may_repeat && dice.one_in(12) ? 0 : stride;
    stride *= std::max<std::int64_t>(view.shape[dim], 1) + (dice.one_in(4) ? dice.below(3) : 0);
  }
}

/// What normal values are multiplied by. Tolerances are for dot products of independent columns;
/// those of one column that is repeated are larger by the root of their number.
double ordinary_size(const TensorView& view) {
  const auto columns = static_cast<double>(view.extent(-1));
  return view.stride(-1) == 0 && columns > 0 ? 1 / std::sqrt(columns) : 1;
}

Block make(Dice& dice, const Shape& shape, DType dtype, bool is_input) {
  Block block;
  block.view = {.dtype = dtype, .rank = static_cast<int>(shape.size())};
  std::ranges::copy(shape, block.view.shape.begin());
  place(dice, block.view, is_input);
  const std::int64_t offset = dice.below(4);
  std::int64_t count = offset + 1;
  for (int dim = 0; dim < block.view.rank; ++dim)
    count += std::max<std::int64_t>(block.view.shape[dim] - 1, 0) * block.view.strides[dim];
  block.memory.resize(static_cast<std::size_t>(count * size_bytes(dtype)));
  const TensorView all = dense(block.memory.data(), dtype, {1, 1, 1, count});
  for (std::int64_t n = 0; is_input && n < count; ++n)
    write(all, 0, 0, 0, n,
          dtype == DType::kBool ? !dice.one_in(4) : dice.normal() * ordinary_size(block.view));
  block.bind(offset);
  return block;
}

/// Everything of one call.
struct Call {
  Block query, key, value, mask, sinks, grad_out, grad_lse;
  Block out, lse, grad_query, grad_key, grad_value, grad_mask, grad_sinks;
  Attributes attributes;
  Request request;

  ForwardTensors forward_tensors() const {
    return {.query = query.view,
            .key = key.view,
            .value = value.view,
            .mask = mask.view,
            .sinks = sinks.view,
            .out = out.view,
            .lse = lse.view};
  }

  BackwardTensors backward_tensors() const {
    return {.query = query.view,
            .key = key.view,
            .value = value.view,
            .mask = mask.view,
            .sinks = sinks.view,
            .out = out.view,
            .lse = lse.view,
            .grad_out = grad_out.view,
            .grad_lse = grad_lse.view,
            .grad_query = grad_query.view,
            .grad_key = grad_key.view,
            .grad_value = grad_value.view,
            .grad_mask = grad_mask.view,
            .grad_sinks = grad_sinks.view};
  }
};

/// One of the shapes 1 and `full`; rarely a wrong one.
std::int64_t broadcast_extent(Dice& dice, std::int64_t full) {
  if (dice.one_in(150)) return full + 1;
  return dice.one_in(4) ? 1 : full;
}

/// Batch extents, fewer or as many, each the given one or 1; then heads, rows, columns.
Shape operand_shape(Dice& dice, const Shape& batch, std::int64_t heads, std::int64_t rows,
                    std::int64_t columns) {
  Shape shape;
  const bool is_whole = !dice.one_in(4);
  for (std::size_t n = is_whole ? 0 : batch.size() / 2; n < batch.size(); ++n)
    shape.push_back(broadcast_extent(dice, batch[n]));
  for (std::int64_t extent : {heads, rows, columns})
    shape.push_back(dice.one_in(300) ? extent + 1 : extent);
  return shape;
}

DType spoilt(Dice& dice, DType dtype) {
  return dice.one_in(150) ? dice.any_of({DType::kFloat32, DType::kFloat64, DType::kBool}) : dtype;
}

Attributes make_attributes(Dice& dice) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  Attributes a;
  a.causal = dice.any_of({Causal::kNone, Causal::kUpperLeft, Causal::kLowerRight});
  if (dice.one_in(3)) a.scale = dice.any_of({0.0, 0.5, -1.0});
  if (dice.one_in(4))
    a.window = {dice.any_of<std::int64_t>({-1, 0, 2, kMost}),
                dice.any_of<std::int64_t>({-1, 0, 3, kMost, kMost - 1})};
  if (dice.one_in(4)) a.softcap = dice.any_of({0.7, 30.0});
  if (dice.one_in(4)) a.dropout = {.probability = dice.any_of({0.2, 1.0}), .seed = 17, .offset = 1};
  if (dice.one_in(100)) a.dropout.probability = dice.any_of({-0.1, 1.1, kNaN});
  if (dice.one_in(100)) a.softcap = dice.any_of({-1.0, kNaN});
  if (dice.one_in(100)) a.window.left = -2;
  return a;
}

/// Outputs of the right shapes; rarely of a wrong one or none. Throws like the door where the
/// inputs do not go together.
void add_outputs(Dice& dice, Call& call) {
  const Problem problem =
      make_problem({.query = call.query.view, .key = call.key.view, .value = call.value.view}, {});
  const DType dtype = problem.dtype,
              sums = problem.dtype == DType::kFloat64 ? dtype : DType::kFloat32;
  const TensorView out = output_shape(call.query.view, call.key.view, call.value.view);
  const auto shaped = [&](std::int64_t heads, std::int64_t rows, std::int64_t columns) {
    Shape shape(out.shape.begin(), out.shape.begin() + out.rank);
    if (out.rank > 2) shape[shape.size() - 3] = heads;
    shape[shape.size() - 2] = rows;
    shape[shape.size() - 1] = dice.one_in(400) ? columns + 1 : columns;
    return shape;
  };
  const Problem& p = problem;
  call.out = make(dice, shaped(p.q_heads, p.q_len, p.v_dim), dtype, false);
  call.lse = make(dice, shaped(p.q_heads, p.q_len, 1), sums, false);
  call.grad_out = make(dice, shaped(p.q_heads, p.q_len, p.v_dim), dtype, true);
  if (dice.one_in(3)) call.grad_lse = make(dice, shaped(p.q_heads, p.q_len, 1), sums, true);
  if (!dice.one_in(4))
    call.grad_query = make(dice, shaped(p.q_heads, p.q_len, p.qk_dim), dtype, false);
  if (!dice.one_in(4))
    call.grad_key = make(dice, shaped(p.kv_heads, p.kv_len, p.qk_dim), dtype, false);
  if (!dice.one_in(4))
    call.grad_value = make(dice, shaped(p.kv_heads, p.kv_len, p.v_dim), dtype, false);
  const TensorView& mask = call.mask.view;
  if (mask.is_present() && mask.dtype != DType::kBool && !dice.one_in(3))
    call.grad_mask =
        make(dice, Shape(mask.shape.begin(), mask.shape.begin() + mask.rank), sums, false);
  if (call.sinks.view.is_present()) call.grad_sinks = make(dice, {p.q_heads}, sums, false);
}

Call make_call(Dice& dice) {
  Call call;
  const DType dtype =
      dice.any_of({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64});
  const auto extent = [&] {
    return dice.one_in(25) ? 0 : dice.any_of<std::int64_t>({1, 2, 3, 5, 8, 17, 33});
  };
  Shape batch(static_cast<std::size_t>(dice.below(4)));
  for (std::int64_t& each : batch) each = dice.any_of<std::int64_t>({1, 2, 3});
  const std::int64_t kv_heads = 1 + dice.below(3), q_heads = kv_heads * (1 + dice.below(3));
  const std::int64_t q_len = extent(), kv_len = extent(), qk_dim = extent(), v_dim = extent();
  call.query = make(dice, operand_shape(dice, batch, q_heads, q_len, qk_dim), dtype, true);
  call.key =
      make(dice, operand_shape(dice, batch, kv_heads, kv_len, qk_dim), spoilt(dice, dtype), true);
  call.value =
      make(dice, operand_shape(dice, batch, kv_heads, kv_len, v_dim), spoilt(dice, dtype), true);
  if (dice.one_in(2)) {
    Shape shape = operand_shape(dice, batch, broadcast_extent(dice, q_heads),
                                broadcast_extent(dice, q_len), kv_len);
    const DType mask_dtype = dice.any_of({DType::kBool, DType::kFloat32, dtype});
    call.mask = make(dice, shape, mask_dtype, true);
  }
  if (dice.one_in(4)) call.sinks = make(dice, {dice.one_in(40) ? 7 : q_heads}, dtype, true);
  call.attributes = make_attributes(dice);
  call.request.backend = dice.any_of<std::string>({"auto", "cpu", "cpu", "unheard of"});
  add_outputs(dice, call);
  return call;
}

/// The rank-4 view of one entry of the batch; `index` counts the output's batch, row-major.
TensorView entry(const TensorView& view, const TensorView& out, std::int64_t index,
                 const Shape& last) {
  if (!view.is_present()) return view;
  TensorView result = with_rank(view, 4);
  std::int64_t offset = 0;
  for (int dim = -4; dim >= -out.rank; --dim) {
    const std::int64_t position = index % out.extent(dim);
    index /= out.extent(dim);
    if (view.extent(dim) > 1) offset += position * view.stride(dim);
  }
  result.data = static_cast<std::byte*>(view.data) + offset * size_bytes(view.dtype);
  result.shape[0] = 1;
  for (int dim = 1; dim < 4; ++dim)
    result = expanded(result, dim, last[static_cast<std::size_t>(dim - 1)]);
  return result;
}

/// One value a head as [1, heads, 1, 1].
TensorView head_values(const TensorView& view) {
  if (!view.is_present()) return view;
  TensorView result = dense(view.data, view.dtype, {1, view.shape[0], 1, 1});
  result.strides = {0, view.strides[0], 0, 0};
  return result;
}

/// A float64 tensor of a view's shape, densely packed, zero.
Block widened(const TensorView& like) {
  Block block;
  if (!like.is_present()) return block;
  block.view = like;
  block.view.dtype = DType::kFloat64;
  std::int64_t stride = 1;
  for (int dim = like.rank - 1; dim >= 0; --dim) {
    block.view.strides[dim] = stride;
    stride *= like.shape[dim];
  }
  block.memory.resize(static_cast<std::size_t>(8 * std::max<std::int64_t>(stride, 1)));
  block.bind(0);
  return block;
}

/// Elements of a tensor of any rank in row-major order.
std::vector<double> elements(const TensorView& view, int dim = 0) {
  if (!view.is_present()) return {};
  if (view.rank - dim <= 4) {
    TensorView rest = view;
    rest.rank = view.rank - dim;
    std::copy(view.shape.begin() + dim, view.shape.begin() + view.rank, rest.shape.begin());
    std::copy(view.strides.begin() + dim, view.strides.begin() + view.rank, rest.strides.begin());
    rest = with_rank(rest, 4);
    std::vector<double> list;
    for (std::int64_t b = 0; b < rest.shape[0]; ++b)
      for (std::int64_t h = 0; h < rest.shape[1]; ++h)
        for (std::int64_t r = 0; r < rest.shape[2]; ++r)
          for (std::int64_t c = 0; c < rest.shape[3]; ++c) list.push_back(read(rest, b, h, r, c));
    return list;
  }
  std::vector<double> list;
  for (std::int64_t n = 0; n < view.shape[dim]; ++n) {
    TensorView slice = view;
    slice.data =
        static_cast<std::byte*>(view.data) + n * view.strides[dim] * size_bytes(view.dtype);
    for (double value : elements(slice, dim + 1)) list.push_back(value);
  }
  return list;
}

/// The oracle's outputs of a call, in float64.
struct Oracle {
  Block out, lse, grad_query, grad_key, grad_value, grad_mask, grad_sinks;

  explicit Oracle(const Call& call)
      : out(widened(call.out.view)),
        lse(widened(call.lse.view)),
        grad_query(widened(call.grad_query.view)),
        grad_key(widened(call.grad_key.view)),
        grad_value(widened(call.grad_value.view)),
        grad_mask(widened(call.grad_mask.view)),
        grad_sinks(widened(call.grad_sinks.view)) {
    Problem problem = make_problem(call.forward_tensors(), call.attributes);
    const std::int64_t batch = problem.batch;
    problem.batch = 1;
    for (std::int64_t index = 0; index < batch; ++index) {
      problem.dropout.first_head = index * problem.q_heads;
      run(problem, call, index);
    }
  }

  void run(const Problem& p, const Call& call, std::int64_t index) {
    const auto at = [&](const TensorView& view, std::int64_t heads, std::int64_t rows,
                        std::int64_t columns) {
      return entry(view, call.out.view, index, {heads, rows, columns});
    };
    BackwardTensors t{.query = at(call.query.view, p.q_heads, p.q_len, p.qk_dim),
                      .key = at(call.key.view, p.kv_heads, p.kv_len, p.qk_dim),
                      .value = at(call.value.view, p.kv_heads, p.kv_len, p.v_dim),
                      .mask = at(call.mask.view, p.q_heads, p.q_len, p.kv_len),
                      .sinks = head_values(call.sinks.view),
                      .out = at(out.view, p.q_heads, p.q_len, p.v_dim),
                      .lse = at(lse.view, p.q_heads, p.q_len, 1),
                      .grad_out = at(call.grad_out.view, p.q_heads, p.q_len, p.v_dim),
                      .grad_lse = at(call.grad_lse.view, p.q_heads, p.q_len, 1),
                      .grad_query = at(grad_query.view, p.q_heads, p.q_len, p.qk_dim),
                      .grad_key = at(grad_key.view, p.kv_heads, p.kv_len, p.qk_dim),
                      .grad_value = at(grad_value.view, p.kv_heads, p.kv_len, p.v_dim),
                      .grad_mask = at(grad_mask.view, p.q_heads, p.q_len, p.kv_len),
                      .grad_sinks = head_values(grad_sinks.view)};
    reference::forward(p, {.query = t.query,
                           .key = t.key,
                           .value = t.value,
                           .mask = t.mask,
                           .sinks = t.sinks,
                           .out = t.out,
                           .lse = t.lse});
    reference::backward(p, t);
  }
};

void expect_close(const char* what, const Block& actual, const Block& expected,
                  const Tolerance& allowed) {
  const std::vector<double> a = elements(actual.view), e = elements(expected.view);
  ASSERT_EQ(a.size(), e.size()) << what;
  for (std::size_t n = 0; n < a.size(); ++n)
    ASSERT_TRUE(is_close(a[n], e[n], allowed))
        << what << " element " << n << " is " << a[n] << ", expected " << e[n];
}

/// Outputs are NaN before a run, but for those that a run adds to, which are zero.
void reset_outputs(Call& call) {
  for (Block* block : {&call.out, &call.lse, &call.grad_query, &call.grad_key, &call.grad_value})
    std::ranges::fill(block->memory, std::byte{0xff});
  for (Block* block : {&call.grad_mask, &call.grad_sinks})
    std::ranges::fill(block->memory, std::byte{0});
}

/// Runs a call through the door and compares it with the oracle.
void run(Call& call) {
  reset_outputs(call);
  forward(call.forward_tensors(), call.attributes, call.request);
  backward(call.backward_tensors(), call.attributes, call.request);
  const Oracle oracle(call);
  const Problem problem = make_problem(call.forward_tensors(), call.attributes);
  const Tolerance allowed = tolerance(problem, Pass::kForward);
  expect_close("out", call.out, oracle.out, allowed);
  expect_close("lse", call.lse, oracle.lse, allowed);
  const Tolerance gradients = tolerance(problem, Pass::kBackward);
  expect_close("grad_query", call.grad_query, oracle.grad_query, gradients);
  expect_close("grad_key", call.grad_key, oracle.grad_key, gradients);
  expect_close("grad_value", call.grad_value, oracle.grad_value, gradients);
  expect_close("grad_mask", call.grad_mask, oracle.grad_mask, gradients);
  expect_close("grad_sinks", call.grad_sinks, oracle.grad_sinks, gradients);
}

/// One step of a walk; whether the door took it.
bool is_taken(std::uint64_t seed, std::uint64_t step, const std::vector<Engine>& all) {
  constexpr std::uint64_t kApart = 1'000'003;  // more than a walk has steps
  Dice dice(seed * kApart + step);
  try {
    Call call = make_call(dice);
    const Problem problem = make_problem(call.forward_tensors(), call.attributes);
    SCOPED_TRACE(to_string(problem) + " scale=" + std::to_string(problem.scale));
    for (const Engine& engine : all) {
      const Forced forced(engine);
      SCOPED_TRACE(engine.instruction_set);
      run(call);
    }
    return true;
  } catch (const std::invalid_argument& error) {
    const std::string_view sentence = error.what();
    EXPECT_GT(sentence.size(), 20u);
    EXPECT_EQ(sentence.find('\n'), sentence.npos) << sentence;
    return false;
  }
}

/// A number from the environment.
std::optional<std::uint64_t> number_in(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  return std::strtoull(text, nullptr, 10);
}

TEST(Fuzz, EachCallIsRefusedInASentenceOrRight) {
  constexpr std::uint64_t kSteps = 1500;
  const std::uint64_t seed = number_in("SDPA_FUZZ_SEED").value_or(2024);
  const auto only = number_in("SDPA_FUZZ_CALL");
  const std::vector<Engine> all = engines();
  std::uint64_t refused = 0;
  for (std::uint64_t n = only.value_or(0); n < (only ? *only + 1 : kSteps); ++n) {
    SCOPED_TRACE("again with SDPA_FUZZ_SEED=" + std::to_string(seed) +
                 " SDPA_FUZZ_CALL=" + std::to_string(n));
    if (!is_taken(seed, n, all)) ++refused;
    if (testing::Test::HasFailure()) return;
  }
  if (only) return;
  EXPECT_GT(refused, kSteps / 100) << "the walk hardly makes a mistake";
  EXPECT_LT(refused, kSteps / 2) << "the walk makes too many mistakes";
}

}  // namespace
}  // namespace sdpa::cases
