// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/metal/lazy.h"
#include "sdpa/metal/mpsgraph.h"
#include "sdpa/metal/pipelines.h"

namespace sdpa::metal {

/// What a back end that runs graphs opens once for all calls.
struct GraphEngine {
  Gpu gpu;
  GraphSystem system = open_graph_system();
  Pipelines pipelines{gpu, source};
  Executables executables{gpu.device()};
};

}  // namespace sdpa::metal
