// SPDX-License-Identifier: MIT
#include "sdpa/select.h"

#include <algorithm>
#include <cstdio>
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

/// The sentence against a back end of another device.
std::optional<std::string> elsewhere(const Backend& backend, const Problem& problem) {
  if (backend.device() == problem.device) return std::nullopt;
  return std::string("It runs on ") + std::string(name_of(backend.device())) +
         "; the tensors are on " + std::string(name_of(problem.device)) + ".";
}

/// The sentence against a back end for this problem; none if it can run it.
std::optional<std::string> objection(const Backend& backend, const Problem& problem, Pass pass) {
  if (auto sentence = elsewhere(backend, problem)) return sentence;
  const Availability availability = backend.availability();
  if (!availability.available) return availability.reason;
  const std::vector<std::string> reasons = backend.unsupported(problem, pass);
  if (reasons.empty()) return std::nullopt;
  return joined(reasons);
}

/// Keeps the first sentence against each back end.
void reject(std::string_view name, std::string&& sentence, Choice& choice) {
  if (std::ranges::find(choice.rejected, name, &Rejection::backend) == choice.rejected.end())
    choice.rejected.push_back({std::string(name), std::move(sentence)});
}

/// Takes `backend` if nothing is against it, else notes the objection.
bool take(const Backend& backend, const Problem& problem, Pass pass, Choice& choice) {
  if (auto sentence = objection(backend, problem, pass)) {
    reject(backend.name(), std::move(*sentence), choice);
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

std::string needs_more(double minimum, double work) {
  char text[128];
  std::snprintf(text, sizeof text,
                "Calibration found others faster below a work of %.2g; this problem's is %.2g.",
                minimum, work);
  return text;
}

/// Climbs a ladder; whether that settled the choice.
bool climb(const Ladder& ladder, const Problem& problem, Pass pass,
           std::span<const Backend* const> candidates, Choice& choice) {
  bool held_back = false;
  for (const Step& step : ladder) {
    const auto found = std::ranges::find(candidates, step.backend, &Backend::name);
    if (found == candidates.end()) continue;
    if (const double done = work(problem); done < step.minimum_work) {
      held_back = true;
      reject(step.backend, needs_more(step.minimum_work, done), choice);
    } else if (take(**found, problem, pass, choice)) {
      choice.why = "Calibration found it the fastest for this amount of work.";
      return true;
    }
  }
  if (held_back)
    choice.why = "Calibration found the framework's own function faster below this amount of work.";
  return held_back;
}

}  // namespace

void reject_other_devices(const Problem& problem, std::span<const Backend* const> candidates,
                          Choice& choice) {
  for (const Backend* candidate : candidates)
    if (auto sentence = elsewhere(*candidate, problem))
      reject(candidate->name(), std::move(*sentence), choice);
}

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
  if (automatic && is_plain(problem) &&
      climb(thresholds.of(pass, problem), problem, pass, candidates, choice))
    return choice;
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
