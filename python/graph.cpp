// SPDX-License-Identifier: MIT
#include "graph.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>

#include "options.h"
#include "results.h"
#include "sdpa/metal/attention_graph.h"
#include "sdpa/metal/mpsgraph_backend.h"
#include "sdpa/metal/zero_copy.h"

namespace mps_sdpa {

using sdpa::BackwardTensors;
using sdpa::ForwardTensors;
using sdpa::TensorView;
using sdpa::metal::Place;
using sdpa::metal::Role;
using sdpa::metal::StreamFunctions;

std::vector<std::string> LeftToTorch::unsupported(const sdpa::Problem& problem, sdpa::Pass) const {
  return sdpa::metal::graph_refusals(problem);
}

std::string LeftToTorch::explain(const sdpa::Problem& problem, sdpa::Pass pass) const {
  return sdpa::metal::graph_backend().explain(problem, pass);
}

namespace {

template <typename Function>
Function* function_at(nb::handle address) {
  return reinterpret_cast<Function*>(nb::cast<std::uintptr_t>(address));
}

StreamFunctions stream_of(nb::tuple addresses) {
  return {.current_stream = function_at<void*()>(addresses[0]),
          .command_buffer = function_at<sdpa::apple::Id(void*)>(addresses[1]),
          .end_coalescing = function_at<void(void*)>(addresses[2]),
          .queue = function_at<void*()>(addresses[3]),
          .dispatch_sync = function_at<void(void*, void*, void (*)(void*))>(addresses[4])};
}

/// A tensor of a call under its role.
struct Argument {
  Role role;
  TensorView* view;
};

void place_on_gpu(std::span<Argument> arguments) {
  for (Argument& argument : arguments) argument.view->device = sdpa::Device::kMetal;
}

/// The back end of a call: in place where `places` has (buffer, offset) for each tensor.
std::unique_ptr<const sdpa::Backend> zero_copy(std::span<const Argument> arguments,
                                               nb::handle places, nb::handle stream) {
  if (places.is_none()) return nullptr;
  std::map<Role, Place> by_role;
  std::size_t n = 0;
  for (const Argument& argument : arguments) {
    const nb::handle place = nb::cast<nb::tuple>(places)[n++];
    if (place.is_none()) continue;
    const auto [buffer, offset] = nb::cast<std::pair<std::uintptr_t, std::size_t>>(place);
    by_role[argument.role] = {argument.view->data, reinterpret_cast<sdpa::apple::Id>(buffer),
                              offset};
  }
  return std::make_unique<sdpa::metal::ZeroCopy>(stream_of(nb::cast<nb::tuple>(stream)),
                                                 std::move(by_role));
}

template <typename Run>
void run_alone(const sdpa::Backend& backend, const Run& run) {
  const sdpa::Backend* const list[] = {&backend};
  const sdpa::Choice choice = run(
      sdpa::Request{.backend = std::string(backend.name()), .thresholds = {}, .candidates = list});
  if (choice.backend != nullptr) return;
  throw std::runtime_error(choice.rejected.empty() ? choice.why : choice.rejected[0].reason);
}

/// Computes `out` (and `lse`): in torch's buffers where `places` says so, else in host memory.
void graph_forward(nb::tuple inputs, nb::handle out, nb::handle lse, const Options& options,
                   nb::handle places, nb::handle stream) {
  ForwardTensors t = inputs_of(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4]);
  t.out = view_of(out, "out");
  t.lse = with_column(view_of(lse, "lse"));
  Argument arguments[] = {{Role::kQuery, &t.query}, {Role::kKey, &t.key},
                          {Role::kValue, &t.value}, {Role::kMask, &t.mask},
                          {Role::kSinks, &t.sinks}, {Role::kOut, &t.out},
                          {Role::kLse, &t.lse}};
  place_on_gpu(arguments);
  const auto own = zero_copy(arguments, places, stream);
  const sdpa::Backend& backend = own ? *own : sdpa::metal::graph_backend();
  run_alone(backend, [&](const sdpa::Request& request) {
    const nb::gil_scoped_release release;
    return sdpa::forward(t, options.attributes, request);
  });
}

/// Computes the gradients that are not None. `x` has the five inputs, out, lse, grad_out, grad_lse
/// and the five gradients.
void graph_backward(nb::tuple x, const Options& options, nb::handle places, nb::handle stream) {
  const ForwardTensors in = inputs_of(x[0], x[1], x[2], x[3], x[4]);
  BackwardTensors t{.query = in.query,
                    .key = in.key,
                    .value = in.value,
                    .mask = in.mask,
                    .sinks = in.sinks,
                    .out = view_of(x[5], "out"),
                    .lse = with_column(view_of(x[6], "lse")),
                    .grad_out = view_of(x[7], "grad_out"),
                    .grad_lse = with_column(view_of(x[8], "grad_lse")),
                    .grad_query = view_of(x[9], "grad_query"),
                    .grad_key = view_of(x[10], "grad_key"),
                    .grad_value = view_of(x[11], "grad_value"),
                    .grad_mask = view_of(x[12], "grad_mask"),
                    .grad_sinks = view_of(x[13], "grad_sinks")};
  Argument arguments[] = {{Role::kQuery, &t.query},
                          {Role::kKey, &t.key},
                          {Role::kValue, &t.value},
                          {Role::kMask, &t.mask},
                          {Role::kSinks, &t.sinks},
                          {Role::kOut, &t.out},
                          {Role::kLse, &t.lse},
                          {Role::kGradOut, &t.grad_out},
                          {Role::kGradLse, &t.grad_lse},
                          {Role::kGradQuery, &t.grad_query},
                          {Role::kGradKey, &t.grad_key},
                          {Role::kGradValue, &t.grad_value},
                          {Role::kGradMask, &t.grad_mask},
                          {Role::kGradSinks, &t.grad_sinks}};
  place_on_gpu(arguments);
  const auto own = zero_copy(arguments, places, stream);
  const sdpa::Backend& backend = own ? *own : sdpa::metal::graph_backend();
  run_alone(backend, [&](const sdpa::Request& request) {
    const nb::gil_scoped_release release;
    return sdpa::backward(t, options.attributes, request);
  });
}

std::optional<std::string> reason_against_buffer(std::uintptr_t pointer, std::size_t offset,
                                                 nb::bytes content) {
  const auto* bytes = reinterpret_cast<const std::byte*>(content.c_str());
  return sdpa::metal::reason_against_buffer(reinterpret_cast<const void*>(pointer), offset,
                                            {bytes, content.size()});
}

/// Reaches Apple's libraries under another root from now on: for tests, before anything else.
void use_apple_root(const std::string& root) {
  sdpa::apple::use_runtime(sdpa::apple::open_apple_runtime({.root = root}).release());
}

}  // namespace

void bind_graphs(nb::module_& m) {
  using nb::arg;
  m.def("graph_forward", &graph_forward, arg("inputs"), arg("out"), arg("lse").none(),
        arg("options"), arg("places").none(), arg("stream").none());
  m.def("graph_backward", &graph_backward, arg("tensors"), arg("options"), arg("places").none(),
        arg("stream").none());
  m.def("graph_reason", &sdpa::metal::reason_against_graphs);
  m.def("graph_buffer_reason", &reason_against_buffer, arg("pointer"), arg("offset"),
        arg("content"));
  m.def("drop_graphs", &sdpa::metal::drop_graphs);
  m.def("use_apple_root", &use_apple_root, arg("root"));
}

}  // namespace mps_sdpa
