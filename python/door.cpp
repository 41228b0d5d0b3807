// SPDX-License-Identifier: MIT
#include "door.h"

#include <array>
#include <cstdint>
#include <utility>

#include "calls.h"
#include "options.h"
#include "results.h"
#include "sdpa/attention.h"
#include "tensors.h"

namespace mps_sdpa {
namespace {

using sdpa::BackwardTensors;
using sdpa::Choice;
using sdpa::DType;
using sdpa::ForwardTensors;
using sdpa::TensorView;

/// What the door asks of Python. The objects live as long as the process.
struct Questions {
  std::array<PyObject*, 5> modes{};     ///< functions, true where something special is going on
  PyObject* forward_mode = nullptr;     ///< the names of torch.autograd.forward_ad
  PyObject* is_grad_enabled = nullptr;  ///< torch's function of that name
  PyObject* options = nullptr;   ///< (is_causal, scale, backend, training) -> (Options, settings)
  PyObject* apply = nullptr;     ///< of the autograd function whose passes are below
  PyObject* backward = nullptr;  ///< (ctx, grad_out, ...): its backward pass in general
};

Questions ask;

/// The options of the last call of its kind, under the very objects that it was made with.
struct Known {
  nb::object scale, backend, call;
};

using KnownCalls = std::array<std::array<Known, 2>, 2>;  // [is_causal][training]

KnownCalls& known_calls() {
  static auto* const calls = new KnownCalls;  // outlives the interpreter, as `ask` does
  return *calls;
}

void forget_calls() { known_calls() = {}; }

void attach_door(const nb::tuple& modes, nb::dict forward_mode, nb::object is_grad_enabled,
                 nb::object options, nb::object apply, nb::object backward) {
  for (std::size_t n = 0; n < ask.modes.size(); ++n)
    ask.modes[n] = nb::object(modes[n]).release().ptr();
  ask.forward_mode = forward_mode.release().ptr();
  ask.is_grad_enabled = is_grad_enabled.release().ptr();
  ask.options = options.release().ptr();
  ask.apply = apply.release().ptr();
  ask.backward = backward.release().ptr();
}

nb::object checked(PyObject* result) {
  if (result == nullptr) throw nb::python_error();
  return nb::steal(result);
}

bool is_true(PyObject* function) {
  const nb::object answer = checked(PyObject_Vectorcall(function, nullptr, 0, nullptr));
  return PyObject_IsTrue(answer.ptr()) != 0;
}

/// Whether anything is going on in torch that the door does not know.
bool is_special() {
  static PyObject* const kLevel = PyUnicode_InternFromString("_current_level");
  for (PyObject* mode : ask.modes)
    if (is_true(mode)) return true;
  PyObject* const level = PyDict_GetItem(ask.forward_mode, kLevel);
  return level == nullptr || PyLong_AsLong(level) >= 0;
}

bool is_float(nb::handle object) { return Py_TYPE(object.ptr()) == &PyFloat_Type; }

bool is_zero(nb::handle number) {
  return is_float(number) && PyFloat_AsDouble(number.ptr()) == 0.0;
}

bool is_same_scale(nb::handle a, nb::handle b) {
  return a.is(b) ||
         (is_float(a) && is_float(b) && PyFloat_AsDouble(a.ptr()) == PyFloat_AsDouble(b.ptr()));
}

/// (Options, settings) of a call.
nb::tuple call_for(nb::handle is_causal, nb::handle scale, nb::handle backend, bool training) {
  Known& known = known_calls()[is_causal.is(nb::handle(Py_True))][training];
  const bool is_bool = Py_TYPE(is_causal.ptr()) == &PyBool_Type;
  if (!is_bool || !known.call.is_valid() || !backend.is(known.backend) ||
      !is_same_scale(scale, known.scale)) {
    nb::object made = nb::handle(ask.options)(is_causal, scale, backend, training);
    known = {nb::borrow(scale), nb::borrow(backend), std::move(made)};
  }
  return nb::borrow<nb::tuple>(known.call);
}

nb::object forward_alone(nb::handle query, nb::handle key, nb::handle value, nb::handle mask,
                         const Options& options) {
  ForwardTensors t = inputs_of(query, key, value, mask, nb::none());
  if (t.query.device != sdpa::Device::kCpu) return nb::none();
  nb::object out = allocate(t.out, order_of(t.query));
  return is_as_asked(run(t, options), options) ? out : nb::none();
}

nb::object forward_in_graph(nb::handle query, nb::handle key, nb::handle value, nb::handle mask,
                            const nb::tuple& call) {
  PyObject* arguments[] = {query.ptr(), key.ptr(), value.ptr(), mask.ptr(), call.ptr()};
  nb::object found = checked(PyObject_Vectorcall(ask.apply, arguments, 5, nullptr));
  return PyTuple_Check(found.ptr()) ? nb::none() : found;
}

/// Whether the kernels behind this door are what is asked for. Another back end on the CPU's
/// tensors is a fallback, which the general door finds, runs and counts once.
bool is_for_cpu(const Options& options) {
  const std::string& name = options.request.backend;
  return name == sdpa::kAuto || name == "cpu";
}

/// The result of torch's function; None for a call that is not for this door, or whose choice is
/// remarkable.
nb::object enter(nb::handle query, nb::handle key, nb::handle value, nb::handle mask,
                 nb::handle dropout, nb::handle is_causal, nb::handle scale, nb::handle backend) {
  if (ask.apply == nullptr || !is_zero(dropout) || is_special()) return nb::none();
  const int kind = classify(query, key, value, mask);
  if (kind == 0) return nb::none();
  const bool training = kind != 1 && is_true(ask.is_grad_enabled);
  const nb::tuple call = call_for(is_causal, scale, backend, training);
  const nb::object first = call[0];
  const auto& options = nb::cast<const Options&>(first);
  if (!is_for_cpu(options)) return nb::none();
  return training ? forward_in_graph(query, key, value, mask, call)
                  : forward_alone(query, key, value, mask, options);
}

/// Whether nothing is broadcast between query, key, value and output, and there is no mask.
bool have_batch_of_output(const ForwardTensors& t) {
  if (t.mask.is_present() || t.key.extent(-3) != t.value.extent(-3)) return false;
  for (const TensorView* each : {&t.query, &t.key, &t.value}) {
    if (each->rank != t.out.rank) return false;
    for (int dim = -each->rank; dim < -3; ++dim)
      if (each->extent(dim) != t.out.extent(dim)) return false;
  }
  return t.query.extent(-3) == t.out.extent(-3);
}

SavedLse allocate_lse(const TensorView& out, DType dtype) {
  SavedLse lse{.memory = nullptr, .view = without_columns(out, wide(dtype))};
  std::int64_t count = 1;
  for (int dim = lse.view.rank - 1; dim >= 0; --dim) {
    lse.view.strides[static_cast<std::size_t>(dim)] = count;
    count *= lse.view.shape[static_cast<std::size_t>(dim)];
  }
  lse.memory = std::make_unique_for_overwrite<double[]>(static_cast<std::size_t>(count));
  lse.view.data = lse.memory.get();
  lse.view = with_column(lse.view);
  return lse;
}

void set_attribute(nb::handle object, PyObject* name, nb::handle value) {
  if (PyObject_SetAttr(object.ptr(), name, value.ptr()) != 0) throw nb::python_error();
}

/// The `forward` of an autograd function for calls without sinks whose LSE is not wanted: saves in
/// `ctx` what `backward` needs. `call` is (Options, settings). The result is the output, or
/// (out or None, None, Choice) where that is remarkable.
nb::object forward_saving(nb::handle ctx, nb::handle query, nb::handle key, nb::handle value,
                          nb::handle mask, const nb::tuple& call) {
  static PyObject* const kToSave = PyUnicode_InternFromString("to_save");
  static PyObject* const kCall = PyUnicode_InternFromString("call");
  const nb::object first = call[0];
  const auto& options = nb::cast<const Options&>(first);
  ForwardTensors t = inputs_of(query, key, value, mask, nb::none());
  if (t.query.device != sdpa::Device::kCpu)
    return nb::make_tuple(nb::none(), nb::none(), nb::none());
  nb::object out = allocate(t.out, order_of(t.query));
  SavedLse lse = allocate_lse(t.out, t.query.dtype);
  t.lse = lse.view;
  lse.gradients_fit = have_batch_of_output(t);
  nb::object choice = remarkable(run(t, options), options);
  if (!choice.is_none() && nb::cast<const Choice&>(choice).backend == nullptr)
    return nb::make_tuple(nb::none(), nb::none(), choice);
  set_attribute(ctx, kToSave, nb::make_tuple(query, key, value, mask, out));
  set_attribute(ctx, kCall, nb::make_tuple(call[0], call[1], nb::cast(std::move(lse))));
  return choice.is_none() ? out : nb::object(nb::make_tuple(out, nb::none(), choice));
}

nb::object attribute(nb::handle object, PyObject* name) {
  return checked(PyObject_GetAttr(object.ptr(), name));
}

/// The `backward` to forward_saving: (query, key, value, None, None), the gradients asked for. None
/// where they need more than the kernel: sums over what was broadcast, a graph of their own.
nb::object backward_saved(nb::handle ctx, nb::handle grad_out) {
  static PyObject* const kSaved = PyUnicode_InternFromString("saved_tensors");
  static PyObject* const kCall = PyUnicode_InternFromString("call");
  static PyObject* const kAsked = PyUnicode_InternFromString("needs_input_grad");
  const nb::object call = attribute(ctx, kCall);
  const nb::object kept = call[2], first = call[0];
  const auto& lse = nb::cast<const SavedLse&>(kept);
  const auto& options = nb::cast<const Options&>(first);
  if (!lse.gradients_fit || is_true(ask.is_grad_enabled) || !is_readable(grad_out))
    return nb::none();
  const nb::object saved = attribute(ctx, kSaved), asked = attribute(ctx, kAsked);
  const ForwardTensors in = inputs_of(saved[0], saved[1], saved[2], nb::none(), nb::none());
  BackwardTensors t{.query = in.query,
                    .key = in.key,
                    .value = in.value,
                    .mask = {},
                    .sinks = {},
                    .out = view_of(saved[4], "out"),
                    .lse = lse.view,
                    .grad_out = view_of(grad_out, "grad_out"),
                    .grad_lse = {}};
  int wanted = 0;
  for (int index = 0; index < 3; ++index)
    if (nb::object(asked[index]).is(nb::handle(Py_True))) wanted |= 1 << index;
  const nb::list gradients = allocate_gradients(t, wanted);
  if (!is_as_asked(run(t, options), options)) return nb::none();
  return nb::make_tuple(gradients[0], gradients[1], gradients[2], nb::none(), nb::none());
}

/// backward_saved as a method of the node, which autograd calls with the gradients of all results:
/// a plain function of C, since a frame of Python's costs more than the attention of 4 x 4.
PyObject* apply_backward(PyObject* ctx, PyObject* const* gradients, Py_ssize_t count) {
  if (count < 1) {
    PyErr_SetString(PyExc_TypeError, "backward_saved() needs grad_out, the output's gradient");
    return nullptr;
  }
  try {
    if (nb::object found = backward_saved(ctx, gradients[0]); !found.is_none())
      return found.release().ptr();
    nb::list arguments;
    arguments.append(nb::handle(ctx));
    for (Py_ssize_t n = 0; n < count; ++n) arguments.append(nb::handle(gradients[n]));
    return PyObject_CallObject(ask.backward, nb::tuple(arguments).ptr());
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

/// A method of any object, which the stable interface of Python offers for types only.
nb::object backward_method() {
  static PyMethodDef definition{
      "apply", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&apply_backward)),
      METH_FASTCALL, nullptr};
  return checked(PyDescr_NewMethod(&PyBaseObject_Type, &definition));
}

}  // namespace

void bind_door(nb::module_& m) {
  using nb::arg;
  m.def("attach_door", &attach_door, arg("modes"), arg("forward_mode"), arg("is_grad_enabled"),
        arg("options"), arg("apply"), arg("backward"));
  m.def("forget_calls", &forget_calls);
  m.def("enter", &enter, arg("query"), arg("key"), arg("value"), arg("mask").none(), arg("dropout"),
        arg("is_causal"), arg("scale").none(), arg("backend"));
  nb::class_<SavedLse>(m, "SavedLse", "The log-sum-exp that a backward pass needs");
  m.def("forward_saving", &forward_saving, arg("ctx"), arg("query"), arg("key"), arg("value"),
        arg("mask").none(), arg("call"));
  m.attr("backward_saved") = backward_method();
}

}  // namespace mps_sdpa
