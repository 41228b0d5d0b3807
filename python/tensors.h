// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

#include <span>
#include <string>

#include "dlpack.h"
#include "sdpa/problem.h"

// torch's tensors as views, and new tensors for results. Both go through torch's table of C
// functions (tens of nanoseconds a tensor), or, where a torch does not offer it, through the
// attributes of the Python objects.

namespace mps_sdpa {

namespace nb = nanobind;

/// What the module knows of torch; set once by `attach`.
struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  const dlpack::ExchangeApi* exchange = nullptr;
};

/// Tells the module about torch. `capsule` is the table of C functions, or None.
void attach(nb::object tensor_type, nb::object parameter_type, nb::object capsule);

/// Whether an object is exactly a torch tensor or parameter, and its memory holds its values: that
/// of a lazily negated one, such as the imaginary part of a conjugate, holds the negative.
bool is_readable(nb::handle object);

/// 0 if an object is not readable (None is allowed for the mask), else 1, plus 2 if one of them
/// requires a gradient.
int classify(nb::handle query, nb::handle key, nb::handle value, nb::handle mask);

/// The view of a tensor; absent for None. Throws std::invalid_argument naming the argument when its
/// dtype is not one of ours.
sdpa::TensorView view_of(nb::handle tensor, const char* argument);

/// The views of a call's inputs, and the shape of its output.
sdpa::ForwardTensors inputs_of(nb::handle query, nb::handle key, nb::handle value, nb::handle mask,
                               nb::handle sinks);

/// [..., heads, rows, 1] for a view [..., heads, rows]; absent if it is.
sdpa::TensorView with_column(sdpa::TensorView view);

/// The order in which a new tensor's dimensions lie in memory.
enum class Order : std::uint8_t { kRowMajor, kHeadsInside };

/// Whether a rank-4 view has its heads inside its rows, [batch, rows, heads, columns] in memory.
Order order_of(const sdpa::TensorView& view);

/// A new tensor of the shape and dtype of `like`; its strides and address are written back to
/// `like`. It lies on the CPU, or on `device` where one is given.
nb::object allocate(sdpa::TensorView& like, Order order, nb::handle device = {});

}  // namespace mps_sdpa
