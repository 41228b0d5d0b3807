// SPDX-License-Identifier: MIT
#include "sdpa/metal/mpsgraph_backend.h"

#include "sdpa/metal/graph_engine.h"
#include "sdpa/metal/keep_plan.h"
#include "sdpa/metal/launch.h"

namespace sdpa::metal {

using apple::class_of;
using apple::Handle;
using apple::MPSCommandBuffer;
using apple::MTLBuffer;
using apple::MTLCommandBuffer;
using apple::Ref;
using apple::send;
using apple::operator""_sel;

namespace {

std::vector<std::pair<Role, const TensorView*>> inputs_of(const ForwardTensors& t) {
  return {{Role::kQuery, &t.query},
          {Role::kKey, &t.key},
          {Role::kValue, &t.value},
          {Role::kMask, &t.mask},
          {Role::kSinks, &t.sinks}};
}

std::vector<std::pair<Role, const TensorView*>> inputs_of(const BackwardTensors& t) {
  return {{Role::kQuery, &t.query},     {Role::kKey, &t.key},     {Role::kValue, &t.value},
          {Role::kMask, &t.mask},       {Role::kSinks, &t.sinks}, {Role::kGradOut, &t.grad_out},
          {Role::kGradLse, &t.grad_lse}};
}

std::vector<std::pair<Role, const TensorView*>> outputs_of(const ForwardTensors& t) {
  return {{Role::kOut, &t.out}, {Role::kLse, &t.lse}};
}

std::vector<std::pair<Role, const TensorView*>> outputs_of(const BackwardTensors& t) {
  return {{Role::kGradQuery, &t.grad_query},
          {Role::kGradKey, &t.grad_key},
          {Role::kGradValue, &t.grad_value},
          {Role::kGradMask, &t.grad_mask},
          {Role::kGradSinks, &t.grad_sinks}};
}

TensorView view_of(const Array& array, const Port& port, DType dtype) {
  void* data = send<void*>(array.buffer, "contents"_sel);
  return dense(data, dtype, {port.shape[0], port.shape[1], port.shape[2], port.shape[3]});
}

/// The view with its broadcast dimensions as the port has them.
TensorView as_port(TensorView view, const Port& port) {
  for (std::size_t dim = 0; dim < 4; ++dim) view.shape[dim] = port.shape[dim];
  return view;
}

/// Adds a result to gradients that accumulate, all float32.
void add_elements(const TensorView& from, const TensorView& to) {
  for (std::int64_t b = 0; b < to.shape[0]; ++b) {
    for (std::int64_t h = 0; h < to.shape[1]; ++h) {
      for (std::int64_t r = 0; r < to.shape[2]; ++r) {
        for (std::int64_t c = 0; c < to.shape[3]; ++c) {
          *to.at<float>(b, h, r, c) += *from.at<float>(b, h, r, c);
        }
      }
    }
  }
}

bool accumulates(Role role) { return role == Role::kGradMask || role == Role::kGradSinks; }

/// One run of one graph, with memory of its own.
class Run {
 public:
  Run(GraphEngine& opened, const Executable& executable)
      : opened_(opened), executable_(executable) {
    for (const auto* ports : {&executable.feeds, &executable.targets}) {
      for (const Port& port : *ports) {
        if (port.role == Role::kKeep) continue;
        arrays_[port.role] = {opened.gpu.allocate(static_cast<std::size_t>(port.bytes()))};
      }
    }
  }

  template <class Tensors>
  void compute(const Problem& problem, const Tensors& tensors) {
    for (const auto& [role, view] : inputs_of(tensors)) copy_in(role, *view);
    if (problem.dropout.is_active()) draw_dropout(problem);
    run();
    for (const auto& [role, view] : outputs_of(tensors)) copy_out(role, *view);
  }

 private:
  static const Port* find(const std::vector<Port>& ports, Role role) {
    for (const Port& port : ports) {
      if (port.role == role) return &port;
    }
    return nullptr;
  }

  void copy_in(Role role, const TensorView& view) {
    if (const Port* port = find(executable_.feeds, role)) {
      copy_elements(as_port(view, *port), view_of(arrays_.at(role), *port, view.dtype));
    }
  }

  void copy_out(Role role, const TensorView& view) {
    const Port* port = find(executable_.targets, role);
    if (!port) return;
    const TensorView result = view_of(arrays_.at(role), *port, view.dtype);
    const TensorView target = as_port(view, *port);
    accumulates(role) ? add_elements(result, target) : copy_elements(result, target);
  }

  void draw_dropout(const Problem& problem) {
    const Plan plan = plan_keep(problem);
    Staging staging(opened_.gpu);
    for (const Scratch& scratch : plan.scratch) staging.allocate(scratch);
    launch(opened_.gpu, opened_.pipelines, plan, staging);
    arrays_[Role::kKeep] = {staging.buffer(Role::kKeep)};
  }

  void run() {
    const auto commands = send<Handle<MPSCommandBuffer>>(
        class_of<MPSCommandBuffer>(), "commandBufferFromCommandQueue:"_sel, opened_.gpu.queue());
    if (!commands) throw apple::Error("The GPU gave no command buffer.");
    const auto first = send<Handle<MTLCommandBuffer>>(commands, "rootCommandBuffer"_sel);
    encode(executable_, arrays_, commands);
    const auto last = send<Handle<MTLCommandBuffer>>(commands, "rootCommandBuffer"_sel);
    run_to_end(last);
    if (first.id() != last.id()) wait_for(first);
  }

  GraphEngine& opened_;
  const Executable& executable_;
  Arrays arrays_;
};

class GraphBackend final : public Backend {
 public:
  explicit GraphBackend(const GraphLimits& limits) : limits_(limits) {}

  std::string_view name() const override { return "mpsgraph"; }

  Device device() const override { return Device::kMetal; }

  Availability availability() const override {
    return opened_.find() ? Availability{} : Availability{false, opened_.reason()};
  }

  std::vector<std::string> unsupported(const Problem& problem, Pass) const override {
    return graph_refusals(problem, limits_);
  }

  std::string explain(const Problem& problem, Pass pass) const override {
    GraphSpec spec = pass == Pass::kForward ? spec_of(problem, dense_forward(problem))
                                            : spec_of(problem, dense_backward(problem));
    return to_string(make_graph(completed(std::move(spec), opened_.find())));
  }

  void forward(const Problem& problem, const ForwardTensors& tensors) const override {
    guarded([&] { run(problem, tensors); });
  }

  void backward(const Problem& problem, const BackwardTensors& tensors) const override {
    guarded([&] { run(problem, tensors); });
  }

 private:
  GraphSpec completed(GraphSpec spec, const GraphEngine* opened) const {
    spec.limits = limits_;
    spec.has_descriptor = opened && opened->system.has_descriptor;
    return spec;
  }

  template <class Tensors>
  void run(const Problem& problem, const Tensors& tensors) const {
    GraphEngine& opened = opened_.require();
    try {
      for (const Piece& piece : pieces_of(completed(spec_of(problem, tensors), &opened))) {
        run_piece(opened, restricted(problem, piece), restricted(problem, tensors, piece));
      }
    } catch (...) {
      opened.executables.clear();  // what failed for want of memory may pass next time
      throw;
    }
  }

  template <class Tensors>
  void run_piece(GraphEngine& opened, const Problem& problem, const Tensors& tensors) const {
    const apple::AutoreleasePool pool;
    const auto executable = opened.executables.find(completed(spec_of(problem, tensors), &opened));
    Run(opened, *executable).compute(problem, tensors);
  }

  const GraphLimits limits_;
  mutable Lazy<GraphEngine> opened_;
};

}  // namespace

std::unique_ptr<const Backend> make_graph_backend(const GraphLimits& limits) {
  return std::make_unique<GraphBackend>(limits);
}

const Backend& graph_backend() {
  static const GraphBackend instance({});
  return instance;
}

}  // namespace sdpa::metal
