// SPDX-License-Identifier: MIT
//
// packing > pieces, each a problem of its own > those that keep all threads busy by themselves, one
// after the other; all others in one parallel loop, the largest first.
#include "sdpa/packed.h"

#include <algorithm>
#include <exception>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "sdpa/threads.h"

namespace sdpa {
namespace {

/// A loop ends late by at most its last piece: an eighth of a thread's share is little.
constexpr double kPiecesPerThread = 8;

/// About the rows that one task of a kernel has.
constexpr std::int64_t kRowsPerTask = 64;

/// Elements [first, first + length) of a dimension.
struct Range {
  std::int64_t first = 0, length = 0;
};

/// Some heads of one sequence.
struct Piece {
  std::uint32_t sequence = 0;
  Range q_heads, kv_heads, queries, keys;

  double work() const {
    return static_cast<double>(q_heads.length) * static_cast<double>(queries.length) *
           static_cast<double>(keys.length);
  }
};

[[noreturn]] void fail(const std::string& sentence) { throw std::invalid_argument(sentence); }

void check_starts(const char* argument, const std::vector<std::int64_t>& starts,
                  std::int64_t total) {
  if (starts.empty() || !std::ranges::is_sorted(starts) || starts.front() != 0 ||
      starts.back() != total)
    fail(std::string(argument) + " must rise from 0 to the total length " + std::to_string(total));
}

void check_packing(const ForwardTensors& t, const Packing& packing) {
  for (const auto& [argument, view] :
       {std::pair{"query", &t.query}, {"key", &t.key}, {"value", &t.value}, {"out", &t.out}})
    if (view->rank != 3)
      fail(std::string(argument) + " has " + std::to_string(view->rank) +
           " dimensions; packed tensors have 3");
  if (t.mask.is_present()) fail("packed sequences take no attn_mask");
  const std::int64_t heads = t.query.shape[0], kv_heads = t.key.shape[0];
  if (kv_heads != t.value.shape[0] || kv_heads == 0 || heads % kv_heads != 0)
    fail(
        "packed sequences have key and value heads alike, and query heads a multiple of them, but "
        "got " +
        std::to_string(heads) + ", " + std::to_string(kv_heads) + " and " +
        std::to_string(t.value.shape[0]));
  check_starts("query_starts", packing.query_starts, t.query.shape[1]);
  check_starts("key_starts", packing.key_starts, t.key.shape[1]);
  if (packing.query_starts.size() != packing.key_starts.size())
    fail("query_starts and key_starts must name the same number of sequences");
}

Range range_of(const std::vector<std::int64_t>& starts, std::size_t n) {
  return {starts[n], starts[n + 1] - starts[n]};
}

/// Some heads and rows of a view [heads, rows, columns].
TensorView cut(TensorView view, Range heads, Range rows) {
  if (!view.is_present()) return view;
  view.data =
      static_cast<char*>(view.data) +
      size_bytes(view.dtype) * (heads.first * view.strides[0] + rows.first * view.strides[1]);
  view.shape[0] = heads.length;
  view.shape[1] = rows.length;
  return view;
}

/// Some elements of a vector over the heads.
TensorView cut(TensorView view, Range heads) {
  if (!view.is_present()) return view;
  view.data =
      static_cast<char*>(view.data) + size_bytes(view.dtype) * heads.first * view.strides[0];
  view.shape[0] = heads.length;
  return view;
}

ForwardTensors cut(const ForwardTensors& t, const Piece& p) {
  return {.query = cut(t.query, p.q_heads, p.queries),
          .key = cut(t.key, p.kv_heads, p.keys),
          .value = cut(t.value, p.kv_heads, p.keys),
          .sinks = cut(t.sinks, p.q_heads),
          .out = cut(t.out, p.q_heads, p.queries),
          .lse = cut(t.lse, p.q_heads, p.queries)};
}

/// `grad_sinks` has a row of its own for each sequence, since sequences run at the same time.
BackwardTensors cut(const BackwardTensors& t, const Piece& p) {
  BackwardTensors own{.query = cut(t.query, p.q_heads, p.queries),
                      .key = cut(t.key, p.kv_heads, p.keys),
                      .value = cut(t.value, p.kv_heads, p.keys),
                      .sinks = cut(t.sinks, p.q_heads),
                      .out = cut(t.out, p.q_heads, p.queries),
                      .lse = cut(t.lse, p.q_heads, p.queries),
                      .grad_out = cut(t.grad_out, p.q_heads, p.queries),
                      .grad_lse = cut(t.grad_lse, p.q_heads, p.queries),
                      .grad_query = cut(t.grad_query, p.q_heads, p.queries),
                      .grad_key = cut(t.grad_key, p.kv_heads, p.keys),
                      .grad_value = cut(t.grad_value, p.kv_heads, p.keys)};
  if (!t.grad_sinks.is_present()) return own;
  const std::int64_t row = std::int64_t{p.sequence} * t.grad_sinks.shape[0];
  own.grad_sinks = cut(t.grad_sinks, {row + p.q_heads.first, p.q_heads.length});
  return own;
}

std::vector<Piece> sequences_of(const ForwardTensors& t, const Packing& packing) {
  std::vector<Piece> pieces;
  for (std::size_t n = 0; n + 1 < packing.query_starts.size(); ++n)
    pieces.push_back({.sequence = static_cast<std::uint32_t>(n),
                      .q_heads = {0, t.query.shape[0]},
                      .kv_heads = {0, t.key.shape[0]},
                      .queries = range_of(packing.query_starts, n),
                      .keys = range_of(packing.key_starts, n)});
  return pieces;
}

void append_heads(const Piece& whole, std::vector<Piece>& pieces) {
  const std::int64_t group = whole.q_heads.length / whole.kv_heads.length;
  for (std::int64_t head = 0; head < whole.kv_heads.length; ++head) {
    pieces.push_back(whole);
    pieces.back().q_heads = {head * group, group};
    pieces.back().kv_heads = {head, 1};
  }
}

/// What runs alone, and what shares the loop.
struct Schedule {
  std::vector<Piece> alone, together;
};

Schedule schedule(const std::vector<Piece>& sequences) {
  const double threads = thread_count();
  double total = 0;
  for (const Piece& each : sequences) total += each.work();
  Schedule made;
  for (const Piece& each : sequences) {
    const std::int64_t rows = each.queries.length * each.q_heads.length;
    if (each.work() * kPiecesPerThread * threads <= total)
      made.together.push_back(each);
    else if (static_cast<double>(rows / kRowsPerTask) >= kPiecesPerThread * threads)
      made.alone.push_back(each);
    else
      append_heads(each, made.together);
  }
  std::ranges::stable_sort(made.together, std::ranges::greater{}, &Piece::work);
  return made;
}

/// The head that a piece's dropout counts from, and the sequence's offset.
Attributes attributes_of(const Piece& piece, Attributes attributes) {
  attributes.dropout.offset += piece.sequence;
  attributes.dropout.first_head += piece.q_heads.first;
  return attributes;
}

/// Calls `run(piece, attributes)` for all pieces; the Choice of the last one that ran alone, or of
/// the largest in the loop. They differ in nothing but the sizes they speak of.
template <typename Run>
Choice run_all(const std::vector<Piece>& sequences, const Attributes& attributes, const Run& run) {
  const Schedule made = schedule(sequences);
  Choice choice;
  for (const Piece& piece : made.alone) choice = run(piece, attributes_of(piece, attributes));
  std::vector<std::exception_ptr> errors(made.together.size());
  parallel_for(static_cast<std::int64_t>(made.together.size()), [&](std::int64_t task, int) {
    const auto n = static_cast<std::size_t>(task);
    try {
      Choice own = run(made.together[n], attributes_of(made.together[n], attributes));
      if (n == 0) choice = std::move(own);
    } catch (...) {
      errors[n] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  return choice;
}

Request without_thresholds(const Request& request) { return {.backend = request.backend}; }

template <typename Real>
void add_rows(std::span<const Real> rows, const TensorView& to) {
  const auto heads = static_cast<std::size_t>(to.shape[0]);
  auto* sums = static_cast<Real*>(to.data);
  for (std::size_t n = 0; n < rows.size(); ++n)
    sums[static_cast<std::int64_t>(n % heads) * to.strides[0]] += rows[n];
}

/// Runs `run(tensors)` with a row of sink gradients for each sequence, then adds them up in order.
template <typename Real, typename Run>
Choice with_own_sinks(BackwardTensors t, std::int64_t sequences, const Run& run) {
  const TensorView sums = t.grad_sinks;
  std::vector<Real> rows(static_cast<std::size_t>(sequences * sums.shape[0]));
  t.grad_sinks.data = rows.data();
  t.grad_sinks.strides[0] = 1;
  Choice choice = run(t);
  add_rows<Real>(rows, sums);
  return choice;
}

}  // namespace

Choice forward_packed(const ForwardTensors& tensors, const Packing& packing,
                      const Attributes& attributes, const Request& request) {
  check_packing(tensors, packing);
  const Request own = without_thresholds(request);
  return run_all(sequences_of(tensors, packing), attributes,
                 [&](const Piece& piece, const Attributes& attributes_of_piece) {
                   return forward(cut(tensors, piece), attributes_of_piece, own);
                 });
}

Choice backward_packed(const BackwardTensors& tensors, const Packing& packing,
                       const Attributes& attributes, const Request& request) {
  const ForwardTensors inputs{.query = tensors.query,
                              .key = tensors.key,
                              .value = tensors.value,
                              .mask = tensors.mask,
                              .out = tensors.out};
  check_packing(inputs, packing);
  const std::vector<Piece> sequences = sequences_of(inputs, packing);
  const Request own = without_thresholds(request);
  const auto run = [&](const BackwardTensors& t) {
    return run_all(sequences, attributes,
                   [&](const Piece& piece, const Attributes& attributes_of_piece) {
                     return backward(cut(t, piece), attributes_of_piece, own);
                   });
  };
  const auto count = static_cast<std::int64_t>(sequences.size());
  if (!tensors.grad_sinks.is_present()) return run(tensors);
  return tensors.grad_sinks.dtype == DType::kFloat64 ? with_own_sinks<double>(tensors, count, run)
                                                     : with_own_sinks<float>(tensors, count, run);
}

}  // namespace sdpa
