// SPDX-License-Identifier: MIT
#include "metal.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "graph.h"
#include "options.h"
#include "results.h"
#include "sdpa/metal/backend.h"
#include "sdpa/metal/mpsgraph_backend.h"
#include "sdpa/metal/recorder.h"
#include "sdpa/metal/roles.h"
#include "sdpa/metal/roofline.h"
#include "sdpa/registry.h"

namespace mps_sdpa {
namespace {

using sdpa::BackwardTensors;
using sdpa::Choice;
using sdpa::ForwardTensors;
using sdpa::TensorView;
using sdpa::metal::DeviceInfo;
using sdpa::metal::Dispatch;
using sdpa::metal::Extent;
using sdpa::metal::Plan;
using sdpa::metal::Recorded;
using sdpa::metal::Recorder;
using sdpa::metal::Role;

/// The sentence against a launcher, if there is one.
using Against = std::optional<std::string>;

sdpa::Availability availability(const Against& against) { return {!against, against.value_or("")}; }

/// Where a call shall run: a GPU, and what is against the launchers of its kernels and of graphs.
struct Launcher {
  DeviceInfo device;
  Against against, against_zero_copy, against_graphs;
};

/// The back ends of a call on torch's GPU tensors: the library's, but those that read host memory
/// are replaced by ones that leave it to torch.
struct Candidates {
  Recorder flash, proto;
  LeftToTorch zero_copy, graphs;
  std::vector<const sdpa::Backend*> list;

  explicit Candidates(const Launcher& launcher)
      : flash(sdpa::metal::KernelSet::kFlash, launcher.device, availability(launcher.against)),
        proto(sdpa::metal::KernelSet::kProto, launcher.device, availability(launcher.against)),
        zero_copy("mpsgraph_zc", availability(launcher.against_zero_copy)),
        graphs("mpsgraph", availability(launcher.against_graphs)) {
    for (const sdpa::Backend* backend : sdpa::backends()) {
      if (backend == &sdpa::metal::graph_backend()) list.push_back(&zero_copy);
      list.push_back(backend == &sdpa::metal::backend()         ? &flash
                     : backend == &sdpa::metal::proto_backend() ? &proto
                     : backend == &sdpa::metal::graph_backend() ? &graphs
                                                                : backend);
    }
  }

  const std::vector<Recorded>& recorded() const {
    return flash.recorded().empty() ? proto.recorded() : flash.recorded();
  }
};

/// The choice with a back end of that name that stays: candidates end with their call.
Choice lasting(Choice&& choice) {
  static const LeftToTorch zero_copy("mpsgraph_zc", {});
  if (choice.backend == nullptr) return std::move(choice);
  const sdpa::Backend* found = sdpa::find_backend(choice.backend->name());
  choice.backend = found ? found : &zero_copy;
  return std::move(choice);
}

sdpa::Request request_of(const Options& options, const Candidates& candidates) {
  return {.backend = options.request.backend,
          .thresholds = options.request.thresholds,
          .candidates = candidates.list};
}

// ---- Plans as numbers ----

/// The words of a parameter block, which are all of one type.
template <typename Word, typename Block>
nb::list words_of(const Block& block) {
  static_assert(sizeof(Block) % sizeof(Word) == 0);
  Word words[sizeof(Block) / sizeof(Word)];
  std::memcpy(words, &block, sizeof block);
  nb::list list;
  for (Word word : words) list.append(word);
  return list;
}

/// All threads of a grid, which is how torch counts them.
nb::tuple threads_of(const Extent& grid, const Extent& group) {
  return nb::make_tuple(grid.x * group.x, grid.y * group.y, grid.z * group.z);
}

/// (kernel, threads, threads of a group, roles of its arguments)
nb::tuple launch_of(const Dispatch& dispatch) {
  nb::list roles;
  for (Role role : dispatch.buffers) roles.append(static_cast<int>(role));
  const Extent& group = dispatch.group;
  return nb::make_tuple(dispatch.kernel, threads_of(dispatch.grid, group),
                        nb::make_tuple(group.x, group.y, group.z), roles);
}

/// {role: elements from the tensor's begin to the piece's}, where they are not 0.
template <typename Tensors>
nb::dict offsets_of(const Recorded& piece, const Tensors& tensors) {
  nb::dict offsets;
  sdpa::metal::for_each_role(tensors, [&](Role role, const TensorView& view) {
    const auto* begin = static_cast<const char*>(piece.data[static_cast<std::size_t>(role)]);
    if (begin == nullptr || begin == view.data) return;
    const auto bytes = begin - static_cast<const char*>(view.data);
    offsets[nb::int_(static_cast<int>(role))] = bytes / sdpa::size_bytes(view.dtype);
  });
  return offsets;
}

/// (launches, scratch as (role, bytes), whole numbers, real numbers, offsets)
template <typename Tensors>
nb::tuple piece_of(const Recorded& piece, const Tensors& tensors) {
  nb::list launches, scratch;
  for (const Dispatch& dispatch : piece.plan.dispatches) launches.append(launch_of(dispatch));
  for (const auto& [role, bytes] : piece.plan.scratch)
    scratch.append(nb::make_tuple(static_cast<int>(role), bytes));
  return nb::make_tuple(launches, scratch, words_of<std::int64_t>(piece.plan.params),
                        words_of<float>(piece.plan.scalars), offsets_of(piece, tensors));
}

template <typename Tensors>
nb::list pieces_of(const std::vector<Recorded>& recorded, const Tensors& tensors) {
  nb::list pieces;
  for (const Recorded& piece : recorded) pieces.append(piece_of(piece, tensors));
  return pieces;
}

// ---- Calls ----

template <typename... Views>
void place_on_gpu(Views&... views) {
  ((views.device = sdpa::Device::kMetal), ...);
}

ForwardTensors inputs_on_gpu(nb::tuple inputs) {
  ForwardTensors t = inputs_of(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4]);
  place_on_gpu(t.query, t.key, t.value, t.mask, t.sinks, t.out);
  return t;
}

nb::object name_of(const Choice& choice) {
  if (choice.backend == nullptr) return nb::none();
  return nb::cast(std::string(choice.backend->name()));
}

/// (out, lse or None, Choice or None, name of the back end or None, pieces to launch). Without
/// pieces the call is done, or torch's own function is to run and `out` is None.
nb::tuple metal_forward(nb::tuple inputs, const Options& options, bool want_lse,
                        const Launcher& launcher) {
  ForwardTensors t = inputs_on_gpu(inputs);
  auto [out, lse] = allocate_outputs(t, want_lse, inputs[0].attr("device"));
  place_on_gpu(t.out, t.lse);
  const Candidates candidates(launcher);
  Choice choice = sdpa::forward(t, options.attributes, request_of(options, candidates));
  if (choice.backend == nullptr) out = lse = nb::none();
  const nb::object name = name_of(choice);
  return nb::make_tuple(out, lse, remarkable(lasting(std::move(choice)), options), name,
                        pieces_of(candidates.recorded(), t));
}

/// ([five gradients or None], Choice or None, name of the back end or None, pieces to launch)
nb::tuple metal_backward(nb::tuple saved, nb::handle grad_out, nb::handle grad_lse,
                         const Options& options, int wanted, const Launcher& launcher) {
  const ForwardTensors in = inputs_on_gpu(saved);
  BackwardTensors t{.query = in.query,
                    .key = in.key,
                    .value = in.value,
                    .mask = in.mask,
                    .sinks = in.sinks,
                    .out = view_of(saved[5], "out"),
                    .lse = with_column(view_of(saved[6], "lse")),
                    .grad_out = view_of(grad_out, "grad_out"),
                    .grad_lse = with_column(view_of(grad_lse, "grad_lse"))};
  nb::list gradients = allocate_gradients(t, wanted, nb::handle(saved[0]).attr("device"));
  place_on_gpu(t.out, t.lse, t.grad_out, t.grad_lse, t.grad_query, t.grad_key, t.grad_value,
               t.grad_mask, t.grad_sinks);
  const Candidates candidates(launcher);
  Choice choice = sdpa::backward(t, options.attributes, request_of(options, candidates));
  const nb::object name = name_of(choice);
  return nb::make_tuple(gradients, remarkable(lasting(std::move(choice)), options), name,
                        pieces_of(candidates.recorded(), t));
}

/// Throws what a call with these tensors would throw, and launches nothing.
void metal_validate(nb::tuple inputs, const Options& options) {
  sdpa::make_problem(inputs_on_gpu(inputs), options.attributes);
}

/// What would be chosen on such a GPU, which need not be here: (problem, plan, Choice).
nb::tuple metal_explain(nb::tuple inputs, const Options& options, const std::string& pass_name,
                        const Launcher& launcher) {
  const ForwardTensors t = inputs_on_gpu(inputs);
  const sdpa::Pass pass = pass_named(pass_name);
  const sdpa::Problem problem = sdpa::make_problem(t, options.attributes);
  const Candidates candidates(launcher);
  Choice choice = sdpa::select(problem, pass, options.request.backend, candidates.list,
                               options.request.thresholds);
  std::string plan;
  if (choice.backend != nullptr && !problem.is_degenerate())
    plan = choice.backend->explain(problem, pass);
  return nb::make_tuple(sdpa::to_string(problem), plan, lasting(std::move(choice)));
}

/// What a plan depends on for a chip by its name.
DeviceInfo chip_named(const std::string& name) {
  return sdpa::metal::device_of(sdpa::metal::chip_named(name));
}

/// The estimated time of a call on a chip, for people.
std::string estimate_of(nb::tuple inputs, const Options& options, const std::string& pass_name,
                        const std::string& chip_name) {
  const auto kernels = options.request.backend == "metal_proto" ? sdpa::metal::KernelSet::kProto
                                                                : sdpa::metal::KernelSet::kFlash;
  const sdpa::Problem problem = sdpa::make_problem(inputs_on_gpu(inputs), options.attributes);
  const Plan plan =
      sdpa::metal::describe_plan(kernels, problem, pass_named(pass_name), chip_named(chip_name));
  return sdpa::metal::explain_estimate(problem, plan, sdpa::metal::chip_named(chip_name));
}

nb::list role_names() {
  nb::list names;
  for (std::size_t role = 0; role < sdpa::metal::kRoles; ++role)
    names.append(std::string(sdpa::metal::name(static_cast<Role>(role))));
  return names;
}

/// (DeviceInfo, None), or (None, why there is none)
nb::tuple system_device() {
  auto device = sdpa::metal::system_device();
  if (device) return nb::make_tuple(nb::cast(std::move(*device)), nb::none());
  return nb::make_tuple(nb::none(), sdpa::metal::backend().availability().reason);
}

}  // namespace

void bind_metal(nb::module_& m) {
  using nb::arg;
  nb::class_<DeviceInfo>(m, "MetalDevice", "What a plan depends on besides the problem")
      .def(nb::init<std::string, int, int>(), arg("name"), arg("family"), arg("cores"))
      .def_ro("name", &DeviceInfo::name)
      .def_ro("family", &DeviceInfo::family)
      .def_ro("cores", &DeviceInfo::cores)
      .def_rw("max_threads", &DeviceInfo::max_threads);
  nb::class_<Launcher>(m, "MetalLauncher", "A GPU for a call, and what is against its launcher")
      .def(nb::init<DeviceInfo, Against, Against, Against>(), arg("device"),
           arg("against").none() = nb::none(), arg("against_zero_copy").none() = nb::none(),
           arg("against_graphs").none() = nb::none())
      .def_ro("against", &Launcher::against);
  m.attr("metal_roles") = role_names();
  m.def("metal_chip", &chip_named, arg("name"));
  m.def("metal_estimate", &estimate_of, arg("inputs"), arg("options"), arg("pass_"), arg("chip"));
  m.def("metal_device", &system_device);
  m.def("metal_source", &sdpa::metal::source_of, arg("kernel"));
  m.def("metal_explain", &metal_explain, arg("inputs"), arg("options"), arg("pass_"),
        arg("launcher"));
  m.def("metal_validate", &metal_validate, arg("inputs"), arg("options"));
  m.def("metal_forward", &metal_forward, arg("inputs"), arg("options"), arg("want_lse"),
        arg("launcher"));
  m.def("metal_backward", &metal_backward, arg("saved"), arg("grad_out"), arg("grad_lse").none(),
        arg("options"), arg("wanted"), arg("launcher"));
}

}  // namespace mps_sdpa
