// SPDX-License-Identifier: MIT
#include "options.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>

namespace mps_sdpa {
namespace {

namespace nb = nanobind;

/// Pairs of a back end and the least work from which on it is tried.
using Pairs = std::vector<std::pair<std::string, double>>;

/// Per pass and dtype (in the order of sdpa::DType), a ladder for each class of dimensions.
using ThresholdLists = std::optional<std::vector<std::vector<std::vector<Pairs>>>>;

sdpa::Ladder to_ladder(const Pairs& pairs) {
  sdpa::Ladder ladder;
  for (const auto& [backend, minimum_work] : pairs) ladder.push_back({backend, minimum_work});
  return ladder;
}

sdpa::Thresholds to_thresholds(const ThresholdLists& lists) {
  sdpa::Thresholds thresholds;
  for (std::size_t pass = 0; lists && pass < 2; ++pass)
    for (std::size_t dtype = 0; dtype < 5; ++dtype)
      for (std::size_t dim = 0; dim < sdpa::kDimClasses; ++dim)
        thresholds.ladders[pass][dtype][dim] = to_ladder(lists->at(pass).at(dtype).at(dim));
  return thresholds;
}

void construct(Options* self, std::optional<double> scale, int causal,
               std::pair<std::int64_t, std::int64_t> window, double softcap, double dropout,
               std::uint64_t seed, std::uint32_t offset, std::string backend,
               const ThresholdLists& thresholds) {
  new (self)
      Options{.attributes = {.scale = scale,
                             .causal = static_cast<sdpa::Causal>(causal),
                             .window = {window.first, window.second},
                             .softcap = softcap,
                             .dropout = {.probability = dropout, .seed = seed, .offset = offset}},
              .request = {.backend = std::move(backend), .thresholds = to_thresholds(thresholds)}};
}

nb::object chosen_name(const sdpa::Choice& choice) {
  if (choice.backend == nullptr) return nb::none();
  return nb::cast(std::string(choice.backend->name()));
}

nb::list rejections(const sdpa::Choice& choice) {
  nb::list list;
  for (const auto& [backend, reason] : choice.rejected)
    list.append(nb::make_tuple(backend, reason));
  return list;
}

}  // namespace

void bind_options(nb::module_& m) {
  using nb::arg;
  m.attr("dim_bounds") = nb::make_tuple(sdpa::kDimBounds[0], sdpa::kDimBounds[1]);
  nb::class_<Options>(m, "Options", "What a call asks for besides tensors")
      .def("__init__", &construct, nb::kw_only(), arg("scale").none() = nb::none(),
           arg("causal") = 0, arg("window") = std::pair<std::int64_t, std::int64_t>(-1, -1),
           arg("softcap") = 0.0, arg("dropout") = 0.0, arg("seed") = 0, arg("offset") = 0,
           arg("backend") = "auto", arg("thresholds").none() = nb::none());
  nb::class_<sdpa::Choice>(m, "Choice", "A back end, why, and those that were passed over")
      .def_prop_ro("backend", &chosen_name, "Its name; None for torch's own function")
      .def_ro("why", &sdpa::Choice::why)
      .def_prop_ro("rejected", &rejections, "Pairs of a name and its sentence");
}

}  // namespace mps_sdpa
