// SPDX-License-Identifier: MIT
#include "tensors.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "sdpa/attention.h"

namespace mps_sdpa {
namespace {

using sdpa::Device;
using sdpa::DType;
using sdpa::TensorView;

Torch torch;

bool is_plain(nb::handle object) {
  PyTypeObject* type = Py_TYPE(object.ptr());
  return type == torch.tensor || type == torch.parameter;
}

bool requires_grad(nb::handle tensor) {
  static PyObject* const kName = PyUnicode_InternFromString("requires_grad");
  return nb::steal(PyObject_GetAttr(tensor.ptr(), kName)).is(nb::handle(Py_True));
}

bool is_negated(nb::handle tensor) {
  static PyObject* const kName = PyUnicode_InternFromString("is_neg");
  PyObject* arguments[] = {tensor.ptr()};
  return nb::steal(PyObject_VectorcallMethod(kName, arguments, 1, nullptr)).is(nb::handle(Py_True));
}

std::string unknown_dtype(const char* argument, const std::string& dtype) {
  const std::string allowed = std::string(argument) == "attn_mask"
                                  ? "bool, float32, float16, bfloat16 and float64 are allowed"
                                  : "float32, float16, bfloat16 and float64 are allowed";
  return std::string(argument) + " has dtype " + dtype + "; " + allowed;
}

/// "int64", as torch prints it without its module.
std::string dtype_name(nb::handle tensor) {
  const nb::object dtype = tensor.attr("dtype");
  const std::string full = nb::str(dtype).c_str();
  return full.substr(full.find('.') + 1);
}

DType dtype_named(const std::string& name, const char* argument) {
  for (DType dtype :
       {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64, DType::kBool})
    if (name == sdpa::name(dtype)) return dtype;
  throw std::invalid_argument(unknown_dtype(argument, name));
}

DType dtype_of(const dlpack::DataType& type, nb::handle tensor, const char* argument) {
  if (type.code == dlpack::kFloat && type.bits == 32) return DType::kFloat32;
  if (type.code == dlpack::kFloat && type.bits == 16) return DType::kFloat16;
  if (type.code == dlpack::kBFloat) return DType::kBFloat16;
  if (type.code == dlpack::kFloat && type.bits == 64) return DType::kFloat64;
  if (type.code == dlpack::kBool) return DType::kBool;
  throw std::invalid_argument(unknown_dtype(argument, dtype_name(tensor)));
}

constexpr dlpack::DataType to_dlpack(DType dtype) {
  const auto bits = static_cast<std::uint8_t>(8 * sdpa::size_bytes(dtype));
  if (dtype == DType::kBool) return {dlpack::kBool, 8, 1};
  return {dtype == DType::kBFloat16 ? dlpack::kBFloat : dlpack::kFloat, bits, 1};
}

void check_rank(std::int64_t rank, const char* argument) {
  if (rank > sdpa::kMaxRank)
    throw std::invalid_argument(std::string(argument) + " has " + std::to_string(rank) +
                                " dimensions; up to " + std::to_string(sdpa::kMaxRank) +
                                " are allowed");
}

/// A scalar is a vector of one: rank 0 means "absent".
TensorView at_least_vector(TensorView view) {
  if (view.rank == 0) {
    view.rank = 1;
    view.shape[0] = 1;
  }
  return view;
}

Device device_of(const dlpack::Device& device) {
  return device.type == dlpack::kMetal ? Device::kMetal
         : device.type == dlpack::kCpu ? Device::kCpu
                                       : Device::kCuda;
}

void read_integers(nb::handle sequence, std::array<std::int64_t, sdpa::kMaxRank>& out) {
  int dim = 0;
  for (nb::handle item : sequence)
    out[static_cast<std::size_t>(dim++)] = nb::cast<std::int64_t>(item);
}

TensorView read_attributes(nb::handle tensor, const char* argument) {
  const auto rank = nb::cast<std::int64_t>(tensor.attr("ndim"));
  check_rank(rank, argument);
  TensorView view{
      .data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(tensor.attr("data_ptr")())),
      .dtype = dtype_named(dtype_name(tensor), argument),
      .rank = static_cast<int>(rank)};
  const auto type = nb::cast<std::string>(tensor.attr("device").attr("type"));
  view.device = type == "cpu" ? Device::kCpu : type == "mps" ? Device::kMetal : Device::kCuda;
  read_integers(tensor.attr("shape"), view.shape);
  read_integers(tensor.attr("stride")(), view.strides);
  return at_least_vector(view);
}

/// A tensor that torch does not describe: an Apple GPU's has the attributes of any; of others
/// (meta, sparse, ...) only that they are not the CPU's matters, so that no back end takes them.
TensorView not_described(nb::handle tensor, const char* argument) {
  PyErr_Clear();
  if (nb::cast<std::string>(tensor.attr("device").attr("type")) == "mps")
    return read_attributes(tensor, argument);
  return {.device = Device::kCuda, .rank = 1, .shape = {1}};
}

TensorView describe(nb::handle tensor, const char* argument) {
  dlpack::Tensor seen;
  if (torch.exchange->describe(tensor.ptr(), &seen) != 0) return not_described(tensor, argument);
  check_rank(seen.rank, argument);
  TensorView view{.data = static_cast<char*>(seen.data) + seen.byte_offset,
                  .dtype = dtype_of(seen.dtype, tensor, argument),
                  .device = device_of(seen.device),
                  .rank = seen.rank};
  std::copy_n(seen.shape, seen.rank, view.shape.begin());
  std::copy_n(seen.strides, seen.rank, view.strides.begin());
  return at_least_vector(view);
}

/// A tensor of our own, handed to torch: its elements lie behind it in one piece of memory, at the
/// next cache line.
struct OwnTensor {
  dlpack::ManagedTensor managed;
  std::array<std::int64_t, sdpa::kMaxRank> shape, strides;

  void* elements() {
    const auto behind = reinterpret_cast<std::uintptr_t>(this + 1);
    return reinterpret_cast<char*>(this + 1) + (-behind & (kCacheLine - 1));
  }

  static constexpr std::size_t kCacheLine = 64;
};

/// Memory for an OwnTensor and its elements. malloc keeps small pieces at hand, which its
/// relative for aligned memory does not.
void* allocate_memory(const TensorView& like) {
  auto bytes = static_cast<std::size_t>(sdpa::size_bytes(like.dtype));
  std::size_t all = 0;
  bool overflows = false;
  for (int dim = 0; dim < like.rank; ++dim)
    overflows |= __builtin_mul_overflow(bytes, like.shape[static_cast<std::size_t>(dim)], &bytes);
  overflows |= __builtin_add_overflow(bytes, sizeof(OwnTensor) + OwnTensor::kCacheLine, &all);
  void* memory = overflows ? nullptr : std::malloc(all);
  if (memory == nullptr)
    throw std::runtime_error(
        "there is no memory for a result of " +
        (overflows ? std::string("2^64 bytes or more") : std::to_string(bytes) + " bytes"));
  return memory;
}

/// In memory of our own: torch's table would make a tensor, describe it, and make another of the
/// description, which takes 0.4 us more of 0.8 (Zen 4).
nb::object allocate_by_exchange(TensorView& like, bool swapped) {
  auto* made = static_cast<OwnTensor*>(allocate_memory(like));
  std::int64_t stride = 1;
  for (int n = like.rank - 1; n >= 0; --n) {
    const auto dim = static_cast<std::size_t>(swapped && (n == 1 || n == 2) ? 3 - n : n);
    like.strides[dim] = stride;
    stride *= std::max<std::int64_t>(like.shape[dim], 1);
  }
  like.data = made->elements();
  made->shape = like.shape;
  made->strides = like.strides;
  made->managed = {.version = {1, 0},
                   .context = nullptr,
                   .deleter = [](dlpack::ManagedTensor* self) { std::free(self); },
                   .flags = 0,
                   .tensor = {.data = like.data,
                              .device = {dlpack::kCpu, 0},
                              .rank = like.rank,
                              .dtype = to_dlpack(like.dtype),
                              .shape = made->shape.data(),
                              .strides = made->strides.data(),
                              .byte_offset = 0}};
  void* object = nullptr;
  if (torch.exchange->object_from_owned(&made->managed, &object) != 0) throw nb::python_error();
  return nb::steal(static_cast<PyObject*>(object));
}

nb::object empty(const TensorView& like, nb::handle device) {
  const nb::module_ module = nb::module_::import_("torch");
  nb::list shape;
  for (int dim = 0; dim < like.rank; ++dim) shape.append(like.shape[static_cast<std::size_t>(dim)]);
  const std::string dtype(sdpa::name(like.dtype));
  return module.attr("empty")(shape, nb::arg("dtype") = module.attr(dtype.c_str()),
                              nb::arg("device") = device);
}

nb::object allocate_by_attributes(TensorView& like, bool swapped, nb::handle device) {
  if (swapped) std::swap(like.shape[1], like.shape[2]);
  nb::object made = empty(like, device);
  if (swapped) made = made.attr("transpose")(1, 2);
  like = read_attributes(made, "out");
  return made;
}

}  // namespace

void attach(nb::object tensor_type, nb::object parameter_type, nb::object capsule) {
  torch.tensor = reinterpret_cast<PyTypeObject*>(tensor_type.release().ptr());
  torch.parameter = reinterpret_cast<PyTypeObject*>(parameter_type.release().ptr());
  torch.exchange = nullptr;
  if (capsule.is_none()) return;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api == nullptr) throw nb::python_error();
  if (api->version.major == 1 && api->describe != nullptr) torch.exchange = api;
}

bool is_readable(nb::handle object) { return is_plain(object) && !is_negated(object); }

int classify(nb::handle query, nb::handle key, nb::handle value, nb::handle mask) {
  const bool masked = !mask.is_none();
  if (!is_readable(query) || !is_readable(key) || !is_readable(value) ||
      (masked && !is_readable(mask)))
    return 0;
  const bool differentiable = requires_grad(query) || requires_grad(key) || requires_grad(value) ||
                              (masked && requires_grad(mask));
  return differentiable ? 3 : 1;
}

TensorView view_of(nb::handle tensor, const char* argument) {
  if (tensor.is_none()) return {};
  return torch.exchange != nullptr ? describe(tensor, argument) : read_attributes(tensor, argument);
}

sdpa::ForwardTensors inputs_of(nb::handle query, nb::handle key, nb::handle value, nb::handle mask,
                               nb::handle sinks) {
  sdpa::ForwardTensors t{.query = view_of(query, "query"),
                         .key = view_of(key, "key"),
                         .value = view_of(value, "value"),
                         .mask = view_of(mask, "attn_mask"),
                         .sinks = view_of(sinks, "sinks"),
                         .out = {},
                         .lse = {}};
  t.out = sdpa::output_shape(t.query, t.key, t.value);
  return t;
}

TensorView with_column(TensorView view) {
  if (!view.is_present()) return view;
  view.shape[static_cast<std::size_t>(view.rank)] = 1;
  view.strides[static_cast<std::size_t>(view.rank)] = 1;
  ++view.rank;
  return view;
}

Order order_of(const TensorView& view) {
  const bool inside = view.rank == 4 && view.strides[1] < view.strides[2] && view.shape[1] > 1;
  return inside ? Order::kHeadsInside : Order::kRowMajor;
}

nb::object allocate(TensorView& like, Order order, nb::handle device) {
  const bool swapped = order == Order::kHeadsInside && like.rank == 4;
  if (device.is_valid()) return allocate_by_attributes(like, swapped, device);
  return torch.exchange != nullptr ? allocate_by_exchange(like, swapped)
                                   : allocate_by_attributes(like, swapped, nb::str("cpu"));
}

}  // namespace mps_sdpa
