// SPDX-License-Identifier: MIT
#pragma once

#include <nanobind/nanobind.h>

#include <string_view>

#include "options.h"

namespace mps_sdpa {

/// Counts a forward call that a back end has done.
void count_call(std::string_view backend);

/// Runs a call whose results have been allocated, without the GIL; a forward call is counted.
sdpa::Choice run(const sdpa::ForwardTensors& tensors, const Options& options);
sdpa::Choice run(const sdpa::BackwardTensors& tensors, const Options& options);

/// Whether the back end that was asked for, or any of ours if none was, did the call.
bool is_as_asked(const sdpa::Choice& choice, const Options& options);

/// The Choice as an object where the caller should know of it: torch's own function is to run, or
/// another back end than the one asked for did. Else None.
nanobind::object remarkable(sdpa::Choice&& choice, const Options& options);

/// Binds the counters.
void bind_calls(nanobind::module_& m);

}  // namespace mps_sdpa
