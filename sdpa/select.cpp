// SPDX-License-Identifier: MIT
#include "sdpa/select.h"

#include <optional>

namespace sdpa {
namespace {

constexpr std::string_view name_of(Device device) {
  switch (device) {
    case Device::kMetal:
      return "the Apple GPU";
    case Device::kCuda:
      return "an NVIDIA GPU";
    default:
      return "the CPU";
  }
}

std::string joined(const std::vector<std::string>& sentences) {
  std::string text;
  for (const std::string& sentence : sentences) text += (text.empty() ? "" : " ") + sentence;
  return text;
}

/// The sentence against a back end for this problem; none if it can run it.
std::optional<std::string> objection(const Backend& backend, const Problem& problem, Pass pass) {
  if (backend.device() != problem.device)
    return std::string("It runs on ") + std::string(name_of(backend.device())) +
           "; the tensors are on " + std::string(name_of(problem.device)) + ".";
  const Availability availability = backend.availability();
  if (!availability.available) return availability.reason;
  const std::vector<std::string> reasons = backend.unsupported(problem, pass);
  if (reasons.empty()) return std::nullopt;
  return joined(reasons);
}

/// Takes `backend` if nothing is against it, else notes the objection.
bool take(const Backend& backend, const Problem& problem, Pass pass, Choice& choice) {
  if (auto sentence = objection(backend, problem, pass)) {
    choice.rejected.push_back({std::string(backend.name()), std::move(*sentence)});
    return false;
  }
  choice.backend = &backend;
  return true;
}

/// Whether the framework's own function has all that is asked for, as in what calibration timed.
/// It draws other random numbers for dropout, so a seed would not hold.
bool is_plain(const Problem& problem) {
  return problem.softcap == 0 && !problem.has_sinks && !problem.dropout.is_active() &&
         problem.causal != Causal::kLowerRight && problem.window.left < 0 &&
         problem.window.right < 0;
}

}  // namespace

double work(const Problem& problem) {
  return visible_pairs(problem) * static_cast<double>(problem.qk_dim);
}

Choice select(const Problem& problem, Pass pass, std::string_view requested,
              std::span<const Backend* const> candidates, const Thresholds& thresholds) {
  Choice choice;
  if (requested == kStock) {
    choice.why = "It was asked for by name.";
    return choice;
  }
  const bool automatic = requested == kAuto;
  for (const Backend* candidate : candidates)
    if (!automatic && candidate->name() == requested && take(*candidate, problem, pass, choice)) {
      choice.why = "It was asked for by name.";
      return choice;
    }
  const double minimum = thresholds.of(pass, problem);
  if (automatic && minimum > 0 && is_plain(problem) && work(problem) < minimum) {
    choice.why = "Calibration found the framework's own function faster below this amount of work.";
    return choice;
  }
  for (const Backend* candidate : candidates)
    if (candidate->name() != requested && candidate->name() != "metal_proto" &&
        take(*candidate, problem, pass, choice)) {
      choice.why = "It is the first in order of preference that can run this problem.";
      return choice;
    }
  choice.why = "No back end can run this problem.";
  return choice;
}

}  // namespace sdpa
