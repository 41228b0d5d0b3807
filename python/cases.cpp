// SPDX-License-Identifier: MIT
#include "cases.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <array>

#include "tests/cases.h"

namespace mps_sdpa {
namespace {

namespace nb = nanobind;
using sdpa::cases::Case;

constexpr std::array kCausal = {"none", "upper_left", "lower_right"};
constexpr std::array kMaskShapes = {"none", "full", "per_head", "matrix", "keys", "rows"};
constexpr std::array kPatterns = {"random", "soft",   "empty_row", "empty_rows",
                                  "tail",   "blocks", "all"};
constexpr std::array kLayouts = {"contiguous",    "transposed", "sliced",    "expanded_batch",
                                 "column_stride", "huge_rows",  "huge_heads"};

/// The word for an enumerator.
template <typename Words, typename Enum>
const char* word(const Words& words, Enum value) {
  return words.at(static_cast<std::size_t>(value));
}

nb::object mask_of(const Case& spec) {
  if (spec.mask.shape == sdpa::cases::MaskShape::kNone) return nb::none();
  const sdpa::cases::MaskExtents extents = sdpa::cases::mask_extents(spec);
  nb::dict mask;
  mask["kind"] = word(kMaskShapes, spec.mask.shape);
  mask["dtype"] = sdpa::name(spec.mask.dtype);
  mask["pattern"] = word(kPatterns, spec.mask.pattern);
  mask["shape"] = nb::make_tuple(extents.batch, extents.heads, extents.rows, extents.columns);
  return mask;
}

nb::dict to_dict(const Case& spec) {
  nb::dict entry;
  entry["name"] = spec.name;
  entry["suite"] = spec.suite;
  entry["text"] = sdpa::cases::describe(spec);
  entry["dtype"] = sdpa::name(spec.dtype);
  entry["batch"] = spec.batch;
  entry["q_heads"] = spec.q_heads;
  entry["kv_heads"] = spec.kv_heads;
  entry["q_len"] = spec.q_len;
  entry["kv_len"] = spec.kv_len;
  entry["qk_dim"] = spec.qk_dim;
  entry["v_dim"] = spec.v_dim;
  entry["mask"] = mask_of(spec);
  entry["causal"] = word(kCausal, spec.causal);
  entry["window"] = nb::make_tuple(spec.window.left, spec.window.right);
  entry["softcap"] = spec.softcap;
  entry["sinks"] = spec.sinks;
  entry["dropout"] = spec.dropout;
  entry["scale"] = spec.scale;
  entry["layout"] = word(kLayouts, spec.layout);
  entry["grad_lse"] = spec.grad_lse;
  entry["weight"] = spec.weight;
  return entry;
}

nb::list suite(const std::string& name) {
  nb::list list;
  for (const Case& spec : sdpa::cases::suite(name)) list.append(to_dict(spec));
  return list;
}

nb::list suite_names() {
  nb::list list;
  for (std::string_view name : sdpa::cases::suite_names()) list.append(name);
  return list;
}

}  // namespace

void bind_cases(nb::module_& m) {
  m.def("cases", &suite, nb::arg("suite"));
  m.def("suite_names", &suite_names);
}

}  // namespace mps_sdpa
