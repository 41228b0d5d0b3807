// SPDX-License-Identifier: MIT
//
// mps_sdpa._core: the library's functions for Python. No logic of attention here: tensors are read,
// results allocated, the GIL released, and exceptions translated.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <stdexcept>

#include "calls.h"
#include "cases.h"
#include "door.h"
#include "graph.h"
#include "metal.h"
#include "options.h"
#include "oracle.h"
#include "packed.h"
#include "results.h"
#include "sdpa/attention.h"
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/cpu/peak.h"
#include "sdpa/metal/message_report.h"
#include "sdpa/registry.h"
#include "sdpa/select.h"
#include "sdpa/threads.h"
#include "tensors.h"

namespace mps_sdpa {
namespace {

using sdpa::BackwardTensors;
using sdpa::Choice;
using sdpa::ForwardTensors;
using sdpa::TensorView;

/// (out, lse or None, Choice or None); out is None where torch's own function is to run. None for
/// tensors that are not on the CPU.
nb::object forward(nb::handle query, nb::handle key, nb::handle value, nb::handle mask,
                   nb::handle sinks, const Options& options, bool want_lse) {
  ForwardTensors t = inputs_of(query, key, value, mask, sinks);
  if (t.query.device != sdpa::Device::kCpu) return nb::none();
  auto [out, lse] = allocate_outputs(t, want_lse);
  Choice choice = run(t, options);
  if (choice.backend == nullptr) out = lse = nb::none();
  return nb::make_tuple(out, lse, remarkable(std::move(choice), options));
}

TensorView lse_of(nb::handle object) {
  if (nb::isinstance<SavedLse>(object)) return nb::cast<const SavedLse&>(object).view;
  return with_column(view_of(object, "lse"));
}

/// ([five gradients or None], Choice or None). `saved` is (query, key, value, mask, sinks, out,
/// lse), the last a tensor or what forward_saving kept.
nb::object backward(nb::tuple saved, nb::handle grad_out, nb::handle grad_lse,
                    const Options& options, int wanted) {
  const ForwardTensors in = inputs_of(saved[0], saved[1], saved[2], saved[3], saved[4]);
  BackwardTensors t{.query = in.query,
                    .key = in.key,
                    .value = in.value,
                    .mask = in.mask,
                    .sinks = in.sinks,
                    .out = view_of(saved[5], "out"),
                    .lse = lse_of(saved[6]),
                    .grad_out = view_of(grad_out, "grad_out"),
                    .grad_lse = with_column(view_of(grad_lse, "grad_lse"))};
  nb::list gradients = allocate_gradients(t, wanted);
  return nb::make_tuple(gradients, remarkable(run(t, options), options));
}

sdpa::Device device_named(const std::string& name) {
  if (name == "cpu") return sdpa::Device::kCpu;
  if (name == "mps") return sdpa::Device::kMetal;
  if (name == "cuda") return sdpa::Device::kCuda;
  throw std::invalid_argument("device must be cpu, mps or cuda, but got " + name);
}

/// What would be chosen if these tensors lay on `device`: (problem, plan, Choice).
nb::object explain(nb::handle query, nb::handle key, nb::handle value, nb::handle mask,
                   nb::handle sinks, const Options& options, const std::string& pass,
                   const std::string& device) {
  ForwardTensors t = inputs_of(query, key, value, mask, sinks);
  for (TensorView* view : {&t.query, &t.key, &t.value, &t.mask, &t.sinks})
    view->device = device_named(device);
  const sdpa::Problem problem = sdpa::make_problem(t, options.attributes);
  Choice choice = sdpa::select(problem, pass_named(pass), options.request.backend, sdpa::backends(),
                               options.request.thresholds);
  sdpa::reject_other_devices(problem, sdpa::backends(), choice);
  std::string plan;
  if (choice.backend != nullptr) plan = choice.backend->explain(problem, pass_named(pass));
  return nb::make_tuple(sdpa::to_string(problem), plan, std::move(choice));
}

/// [(name, reason against it or None)] of every back end of this build, in order of preference.
nb::list list_backends() {
  nb::list list;
  for (const sdpa::Backend* backend : sdpa::backends()) {
    const sdpa::Availability state = backend->availability();
    nb::object reason = state.available ? nb::none() : nb::object(nb::cast(state.reason));
    list.append(nb::make_tuple(std::string(backend->name()), reason));
  }
  return list;
}

/// [(name, whether this processor runs it)], fastest first.
nb::list list_instruction_sets() {
  nb::list list;
  for (const sdpa::cpu::InstructionSet& set : sdpa::cpu::instruction_sets())
    list.append(nb::make_tuple(set.name, set.runs_here));
  return list;
}

/// Operations and bytes a second that the CPU can do at best, by name.
nb::dict measure_peaks() {
  sdpa::cpu::Peaks peaks;
  {
    const nb::gil_scoped_release unlocked;
    peaks = sdpa::cpu::measure_peaks();
  }
  nb::dict found;
  found["float32"] = peaks.float32;
  found["bfloat16"] = peaks.bfloat16;
  found["bandwidth"] = peaks.bandwidth;
  return found;
}

/// What report_messages() finds: (why nothing was compared, macOS, messages declared, differences).
nb::tuple apple_messages() {
  const sdpa::apple::MessageReport report = sdpa::apple::report_messages();
  nb::list differences;
  for (const std::string& sentence : report.differences) differences.append(sentence);
  return nb::make_tuple(report.reason, report.macos, report.declared, differences);
}

/// User mistakes are RuntimeErrors, as those of torch's own function are.
void translate_exception(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

}  // namespace

NB_MODULE(_core, m) {
  using nb::arg;
  nb::set_leak_warnings(false);  // Options stay in Python's caches until the process ends
  nb::register_exception_translator(&translate_exception);
  m.attr("version") = SDPA_VERSION;
  bind_options(m);
  bind_oracle(m);
  bind_cases(m);
  bind_packed(m);
  bind_calls(m);
  bind_door(m);
  bind_metal(m);
  bind_graphs(m);
  m.def("attach", &attach, arg("tensor"), arg("parameter"), arg("capsule").none());
  m.def("forward", &forward, arg("query"), arg("key"), arg("value"), arg("mask").none(),
        arg("sinks").none(), arg("options"), arg("want_lse"));
  m.def("backward", &backward, arg("saved"), arg("grad_out"), arg("grad_lse").none(),
        arg("options"), arg("wanted"));
  m.def("explain", &explain, arg("query"), arg("key"), arg("value"), arg("mask").none(),
        arg("sinks").none(), arg("options"), arg("pass_") = "forward", arg("device") = "cpu");
  m.def("backends", &list_backends);
  m.def("apple_messages", &apple_messages);
  m.def("instruction_sets", &list_instruction_sets);
  m.def("instruction_set", [] { return sdpa::cpu::instruction_set().name; });
  m.def("set_instruction_set", &sdpa::cpu::set_instruction_set, arg("name"));
  m.def("measure_peaks", &measure_peaks);
  m.def("thread_count", &sdpa::thread_count);
  m.def("set_thread_count", &sdpa::set_thread_count, arg("count"));
}

}  // namespace mps_sdpa
