// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "sdpa/problem.h"

namespace sdpa {

/// Whether a back end can be used on this machine; if not, `reason` is a full sentence.
struct Availability {
  bool available = true;
  std::string reason{};
};

/// One way to compute attention. Implementations are stateless from outside and safe to call from
/// several threads. They are listed in registry.cpp.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;

  virtual Device device() const = 0;

  virtual Availability availability() const = 0;

  /// Full sentences that say why this problem cannot be run here; none if it can. Never throws.
  virtual std::vector<std::string> unsupported(const Problem& problem, Pass pass) const = 0;

  /// The plan for a problem as text: kernel, instruction set or device, tiles, tasks.
  virtual std::string explain(const Problem& problem, Pass pass) const = 0;

  /// Every view has rank 4 and the shapes that `problem` states; broadcast dimensions have stride
  /// 0.
  virtual void forward(const Problem& problem, const ForwardTensors& tensors) const = 0;

  virtual void backward(const Problem& problem, const BackwardTensors& tensors) const = 0;
};

}  // namespace sdpa
