// SPDX-License-Identifier: MIT
#include "calls.h"

#include <nanobind/stl/string_view.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "sdpa/registry.h"

namespace mps_sdpa {
namespace {

namespace nb = nanobind;

constexpr std::size_t kMaxBackends = 16;

/// Forward calls that each back end has done, in the order of sdpa::backends(); the last is that of
/// the one that works on torch's own buffers, which is not among them.
std::array<std::atomic<std::uint64_t>, kMaxBackends> call_counts;
constexpr const char* kZeroCopy = "mpsgraph_zc";

nb::dict read_call_counts() {
  nb::dict counts;
  std::size_t index = 0;
  for (const sdpa::Backend* backend : sdpa::backends())
    counts[std::string(backend->name()).c_str()] = call_counts[index++].load();
  counts[kZeroCopy] = call_counts.back().load();
  return counts;
}

void reset_call_counts() {
  for (auto& count : call_counts) count = 0;
}

/// Lets other Python threads run meanwhile, unless the call is over in less time than that takes.
class Unlocked {
 public:
  Unlocked(const sdpa::TensorView& query, const sdpa::TensorView& key) {
    if (query.element_count() * key.extent(-2) > kBrief) lock_.emplace();
  }

 private:
  static constexpr std::int64_t kBrief = 4096;  ///< products of a pass; well below a microsecond
  std::optional<nb::gil_scoped_release> lock_;
};

}  // namespace

void count_call(std::string_view backend) {
  std::size_t index = 0;
  for (const sdpa::Backend* each : sdpa::backends()) {
    if (each->name() == backend) call_counts[index].fetch_add(1, std::memory_order_relaxed);
    ++index;
  }
  if (backend == kZeroCopy) call_counts.back().fetch_add(1, std::memory_order_relaxed);
}

sdpa::Choice run(const sdpa::ForwardTensors& tensors, const Options& options) {
  sdpa::Choice choice;
  {
    const Unlocked unlocked(tensors.query, tensors.key);
    choice = sdpa::forward(tensors, options.attributes, options.request);
  }
  if (choice.backend != nullptr) count_call(choice.backend->name());
  return choice;
}

sdpa::Choice run(const sdpa::BackwardTensors& tensors, const Options& options) {
  const Unlocked unlocked(tensors.query, tensors.key);
  return sdpa::backward(tensors, options.attributes, options.request);
}

bool is_as_asked(const sdpa::Choice& choice, const Options& options) {
  return choice.backend != nullptr && (options.request.backend == sdpa::kAuto ||
                                       options.request.backend == choice.backend->name());
}

nb::object remarkable(sdpa::Choice&& choice, const Options& options) {
  return is_as_asked(choice, options) ? nb::object(nb::none()) : nb::cast(std::move(choice));
}

void bind_calls(nb::module_& m) {
  m.def("call_counts", &read_call_counts);
  m.def("count_call", &count_call, nb::arg("backend"));
  m.def("reset_call_counts", &reset_call_counts);
}

}  // namespace mps_sdpa
