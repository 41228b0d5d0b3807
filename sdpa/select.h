// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sdpa/backend.h"

namespace sdpa {

/// Head dimensions up to the first of these share thresholds, and those above it up to the second.
constexpr std::int64_t kDimBounds[] = {64, kMaxHeadDim};
constexpr int kDimClasses = 2;

/// From which amount of work on a back end is tried. Work is batch * heads * visible pairs * dim;
/// 0: always; infinity: never.
struct Step {
  std::string backend;
  double minimum_work = 0;
};

/// The order in which calibration has back ends tried, above the framework's own function
/// ("stock"). Empty: nothing was measured.
using Ladder = std::vector<Step>;

/// What calibration knows of this machine.
struct Thresholds {
  /// Indexed by Pass, DType and the class of the head dimension.
  Ladder ladders[2][5][kDimClasses];

  const Ladder& of(Pass pass, const Problem& problem) const {
    return ladders[static_cast<int>(pass)][static_cast<int>(problem.dtype)]
                  [problem.qk_dim > kDimBounds[0]];
  }
};

/// A back end that was passed over, with its sentence.
struct Rejection {
  std::string backend;
  std::string reason;
};

/// What was chosen and why. `backend` is nullptr where the framework's own function should run.
struct Choice {
  const Backend* backend = nullptr;
  std::string why{};
  std::vector<Rejection> rejected{};
};

constexpr std::string_view kAuto = "auto";
constexpr std::string_view kStock = "stock";

/// Walks `candidates` in order of preference: an explicit `requested` name first, then the others;
/// the first that is on the problem's device, available, and has nothing against the problem wins.
/// Under "auto" a problem for which the framework's own function has all that it asks for climbs
/// the ladder first: the first step that it has the work for wins, and if every one that could run
/// it asks for more, it goes to stock. Pure: same arguments, same choice.
Choice select(const Problem& problem, Pass pass, std::string_view requested,
              std::span<const Backend* const> candidates, const Thresholds& thresholds);

/// Adds the sentence against every candidate of another device. Those that a ladder spared `select`
/// to look at have none; a call has no use for it, an explanation does.
void reject_other_devices(const Problem& problem, std::span<const Backend* const> candidates,
                          Choice& choice);

/// The work that thresholds are compared with.
double work(const Problem& problem);

}  // namespace sdpa
