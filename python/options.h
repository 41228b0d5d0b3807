// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "sdpa/attention.h"

namespace mps_sdpa {

/// Everything a call asks for besides tensors, made once and reused: building it costs more than
/// reading a tensor.
struct Options {
  sdpa::Attributes attributes;
  sdpa::Request request;
};

/// The pass of a name, "forward" or "backward".
inline sdpa::Pass pass_named(const std::string& name) {
  return name == "backward" ? sdpa::Pass::kBackward : sdpa::Pass::kForward;
}

/// Binds Options and Choice.
void bind_options(nanobind::module_& m);

}  // namespace mps_sdpa
