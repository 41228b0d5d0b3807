// SPDX-License-Identifier: MIT
#include "sdpa/metal/zero_copy.h"

#include <cstring>
#include <exception>

#include "sdpa/metal/graph_engine.h"
#include "sdpa/metal/keep_plan.h"
#include "sdpa/metal/launch.h"
#include "sdpa/metal/roles.h"

namespace sdpa::metal {

using apple::Error;
using apple::Handle;
using apple::Id;
using apple::MPSCommandBuffer;
using apple::MTLBuffer;
using apple::MTLCommandBuffer;
using apple::NSUInteger;
using apple::Ref;
using apple::send;
using apple::operator""_sel;

namespace {

/// One for the process: torch has one GPU too.
Lazy<GraphEngine>& engine() {
  static Lazy<GraphEngine> instance;
  return instance;
}

/// Whether the elements lie one after the other in the order of the port's shape.
bool is_dense(const TensorView& view, const Port& port) {
  std::int64_t next = 1;
  for (std::size_t dim = 4; dim-- > 0;) {
    if (port.shape[dim] != 1 && view.strides[dim] != next) return false;
    next *= port.shape[dim];
  }
  return true;
}

/// The part of its whole tensor's buffer that a view begins at.
Array array_of(const TensorView& view, const Port& port, const Place& place) {
  if (!is_dense(view, port)) {
    throw Error("The elements of " + std::string(name(port.role)) + " do not lie densely.");
  }
  const auto ahead = static_cast<const char*>(view.data) - static_cast<const char*>(place.data);
  return {Ref<MTLBuffer>::share(place.buffer), place.offset + static_cast<NSUInteger>(ahead)};
}

template <class Tensors>
Arrays arrays_of(const Executable& executable, const Tensors& tensors,
                 const std::map<Role, Place>& places) {
  Arrays arrays;
  for_each_role(tensors, [&](Role role, const TensorView& view) {
    for (const auto* ports : {&executable.feeds, &executable.targets}) {
      for (const Port& port : *ports) {
        if (port.role == role) arrays[role] = array_of(view, port, places.at(role));
      }
    }
  });
  return arrays;
}

/// Work for the stream's own queue. Nothing may be thrown through the system's C code.
class OnStream {
 public:
  template <class Work>
  static void run(const StreamFunctions& stream, const Work& work) {
    Context<Work> context{stream, work, {}};
    stream.dispatch_sync(stream.queue(), &context, &Context<Work>::call);
    if (context.failure) std::rethrow_exception(context.failure);
  }

 private:
  template <class Work>
  struct Context {
    const StreamFunctions& stream;
    const Work& work;
    std::exception_ptr failure;

    static void call(void* raw) {
      auto& context = *static_cast<Context*>(raw);
      try {
        const apple::AutoreleasePool pool;
        void* current = context.stream.current_stream();
        context.stream.end_coalescing(current);
        context.work(Handle<MPSCommandBuffer>(context.stream.command_buffer(current)));
      } catch (...) {
        context.failure = std::current_exception();
      }
    }
  };
};

/// The buffer that dropout is drawn to, by a kernel that is encoded before the graph.
Array draw_dropout(GraphEngine& opened, const Problem& problem, Handle<MPSCommandBuffer> commands) {
  const Plan plan = plan_keep(problem);
  Staging staging(opened.gpu);
  for (const Scratch& scratch : plan.scratch) staging.allocate(scratch);
  encode(opened.pipelines, plan, staging,
         send<Handle<MTLCommandBuffer>>(commands, "rootCommandBuffer"_sel));
  return {staging.buffer(Role::kKeep)};
}

/// Gradients that several parts add to would have to be summed by somebody.
void check_sums(std::size_t pieces, const ForwardTensors&) { static_cast<void>(pieces); }

void check_sums(std::size_t pieces, const BackwardTensors& t) {
  if (pieces > 1 && (t.grad_mask.is_present() || t.grad_sinks.is_present())) {
    throw Error(
        "The gradient of attn_mask or sinks is summed over parts that do not fit one graph.");
  }
}

}  // namespace

std::optional<std::string> reason_against_graphs() {
  if (engine().find()) return std::nullopt;
  return engine().reason();
}

std::optional<std::string> reason_against_buffer(const void* pointer, std::size_t offset,
                                                 std::span<const std::byte> content) {
  if (!engine().find()) return engine().reason();
  const apple::AutoreleasePool pool;
  const Ref<MTLBuffer> ours = engine().require().gpu.allocate(kPageBytes);
  const Id object = static_cast<Id>(const_cast<void*>(pointer));
  apple::Runtime& runtime = apple::runtime();
  if (runtime.class_of(object) != runtime.class_of(ours.id())) {
    return "torch's storage does not point to a Metal buffer.";
  }
  const Handle<MTLBuffer> buffer(object);
  if (send<NSUInteger>(buffer, "length"_sel) < offset + content.size()) {
    return "torch's Metal buffer is shorter than its tensor.";
  }
  const auto* bytes = static_cast<const std::byte*>(send<void*>(buffer, "contents"_sel));
  if (bytes && std::memcmp(bytes + offset, content.data(), content.size()) != 0) {
    return "torch's Metal buffer does not hold its tensor's elements.";
  }
  return std::nullopt;
}

void drop_graphs() {
  if (GraphEngine* opened = engine().find()) opened->executables.clear();
}

Availability ZeroCopy::availability() const {
  const auto reason = reason_against_graphs();
  return {!reason, reason.value_or("")};
}

std::vector<std::string> ZeroCopy::unsupported(const Problem& problem, Pass) const {
  return graph_refusals(problem, limits_);
}

std::string ZeroCopy::explain(const Problem& problem, Pass pass) const {
  return to_string(make_graph(pass == Pass::kForward ? spec_of(problem, dense_forward(problem))
                                                     : spec_of(problem, dense_backward(problem))));
}

template <class Tensors>
void ZeroCopy::run(const Problem& problem, const Tensors& tensors) const {
  GraphEngine& opened = engine().require();
  const auto spec_for = [&](const Problem& of, const Tensors& views) {
    GraphSpec spec = spec_of(of, views);
    spec.limits = limits_;
    spec.has_descriptor = opened.system.has_descriptor;
    return spec;
  };
  const std::vector<Piece> pieces = pieces_of(spec_for(problem, tensors));
  check_sums(pieces.size(), tensors);
  for (const Piece& piece : pieces) {
    const apple::AutoreleasePool pool;
    const Problem part = restricted(problem, piece);
    const Tensors views = restricted(problem, tensors, piece);
    const auto executable = opened.executables.find(spec_for(part, views));
    Arrays arrays = arrays_of(*executable, views, places_);
    OnStream::run(stream_, [&](Handle<MPSCommandBuffer> commands) {
      if (part.dropout.is_active()) arrays[Role::kKeep] = draw_dropout(opened, part, commands);
      encode(*executable, arrays, commands);
    });
  }
}

void ZeroCopy::forward(const Problem& problem, const ForwardTensors& tensors) const {
  guarded([&] { run(problem, tensors); });
}

void ZeroCopy::backward(const Problem& problem, const BackwardTensors& tensors) const {
  guarded([&] { run(problem, tensors); });
}

}  // namespace sdpa::metal
