// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "sdpa/backend.h"
#include "sdpa/metal/attention_graph.h"

/// Apple's MPSGraph for C++ users, with a queue and buffers of its own: tensors are copied in and
/// results out. A call returns when they are there.
namespace sdpa::metal {

std::unique_ptr<const Backend> make_graph_backend(const GraphLimits& limits = {});

/// "mpsgraph", as the registry lists it.
const Backend& graph_backend();

}  // namespace sdpa::metal
