// SPDX-License-Identifier: MIT
#include "tests/conformance.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <sstream>

#include "sdpa/cpu/instruction_set.h"
#include "sdpa/registry.h"

namespace sdpa::cases {
namespace {

std::string position(std::size_t index, const TensorView& view) {
  std::ostringstream text;
  std::int64_t rest = static_cast<std::int64_t>(index), size = view.element_count();
  for (int dim = 0; dim < 4; ++dim) {
    size /= view.shape[dim];
    text << (dim == 0 ? "[" : ",") << rest / size;
    rest %= size;
  }
  text << "]";
  return text.str();
}

/// The first element that is not close, and how many there are.
std::optional<std::string> difference(const char* what, const Tensor& tensor,
                                      const std::vector<double>& expected,
                                      const Tolerance& allowed) {
  if (!tensor.view().is_present()) return std::nullopt;
  const std::vector<double> actual = tensor.values();
  std::size_t wrong = 0, first = 0;
  for (std::size_t n = actual.size(); n-- > 0;)
    if (!is_close(actual[n], expected[n], allowed)) {
      ++wrong;
      first = n;
    }
  if (wrong == 0) return std::nullopt;
  std::ostringstream text;
  text.precision(9);
  text << what << position(first, tensor.view()) << " is " << actual[first] << ", expected "
       << expected[first] << "; " << wrong << " of " << actual.size() << " elements are wrong";
  return text.str();
}

/// An output with its name and expectation.
struct Output {
  const char* name;
  const Tensor& tensor;
  const std::vector<double>& expected;
};

std::vector<std::string> failures(std::initializer_list<Output> outputs, const Tolerance& allowed) {
  std::vector<std::string> list;
  for (const auto& [name, tensor, expected] : outputs) {
    if (auto sentence = difference(name, tensor, expected, allowed))
      list.push_back(std::move(*sentence));
    if (tensor.view().is_present() && !tensor.is_intact())
      list.push_back(std::string(name) + " was written outside its elements");
  }
  return list;
}

std::vector<std::string> refusals(const Backend& backend, const Problem& problem, Pass pass) {
  std::vector<std::string> list;
  for (const std::string& reason : backend.unsupported(problem, pass))
    list.push_back((pass == Pass::kForward ? "forward: " : "backward: ") + reason);
  return list;
}

Tolerance tolerance_at_ordinary_scores(DType dtype, Pass pass) {
  const double factor = pass == Pass::kForward ? 1 : 2;
  switch (dtype) {
    case DType::kFloat64:
      return {factor * 1e-12, factor * 1e-12};
    case DType::kFloat32:
      return {factor * 5e-6, factor * 5e-5};
    default:
      return {factor * 5e-3, factor * 5e-2};
  }
}

}  // namespace

std::string Engine::label() const {
  std::string text(backend->name());
  if (!instruction_set.empty()) text.append(" ").append(instruction_set);
  return text;
}

std::vector<Engine> engines() {
  std::vector<Engine> list;
  const char* only = std::getenv("MPS_SDPA_ISA");
  for (const Backend* backend : backends()) {
    if (!backend->availability().available || backend->device() != Device::kCpu) continue;
    for (const cpu::InstructionSet& set : cpu::instruction_sets())
      if (set.runs_here && (only == nullptr || set.name == only))
        list.push_back({backend, set.name});
  }
  return list;
}

Forced::Forced(std::string_view instruction_set) { cpu::set_instruction_set(instruction_set); }

Forced::~Forced() { cpu::set_instruction_set(""); }

/// The contract is for scores of ordinary size. With a larger scale the probabilities turn on the
/// last bits of scores, log-sum-exp and output, in proportion: at scale 3 and 16 dimensions torch's
/// own kernel is off by 1.5e-4 in float32 and by 0.19 in bfloat16.
Tolerance tolerance(const Problem& problem, Pass pass) {
  Tolerance result = tolerance_at_ordinary_scores(problem.dtype, pass);
  const double usual = 1 / std::sqrt(static_cast<double>(problem.qk_dim));
  if (pass == Pass::kBackward) result.absolute *= std::max(1.0, std::abs(problem.scale) / usual);
  return result;
}

bool is_close(double actual, double expected, const Tolerance& allowed) {
  if (std::isnan(expected)) return std::isnan(actual);
  if (std::isinf(expected)) return actual == expected;
  return std::abs(actual - expected) <= allowed.absolute + allowed.relative * std::abs(expected);
}

std::vector<std::string> forward_failures(const CaseData& data, const Expected& e) {
  return failures({{"out", data.out, e.out}, {"lse", data.lse, e.lse}},
                  tolerance(data.problem, Pass::kForward));
}

std::vector<std::string> backward_failures(const CaseData& data, const Expected& e) {
  return failures({{"grad_query", data.grad_query, e.grad_query},
                   {"grad_key", data.grad_key, e.grad_key},
                   {"grad_value", data.grad_value, e.grad_value},
                   {"grad_mask", data.grad_mask, e.grad_mask},
                   {"grad_sinks", data.grad_sinks, e.grad_sinks}},
                  tolerance(data.problem, Pass::kBackward));
}

Outcome check(const Backend& backend, CaseData& data, const Expected& expected) {
  Outcome outcome{.refusals = refusals(backend, data.problem, Pass::kForward), .failures = {}};
  if (!outcome.refusals.empty()) return outcome;
  data.reset_outputs();
  backend.forward(data.problem, data.forward_tensors());
  outcome.failures = forward_failures(data, expected);
  outcome.refusals = refusals(backend, data.problem, Pass::kBackward);
  if (!outcome.refusals.empty() || !outcome.failures.empty()) return outcome;
  backend.backward(data.problem, data.backward_tensors());
  outcome.failures = backward_failures(data, expected);
  return outcome;
}

}  // namespace sdpa::cases
