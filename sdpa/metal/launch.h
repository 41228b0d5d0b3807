// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>

#include "sdpa/metal/pipelines.h"
#include "sdpa/metal/staging.h"

namespace sdpa::metal {

/// The threads that the tightest pipeline of a plan allows, where that is fewer than the plan asks
/// for: plan again with that many. Compiles what is not compiled yet.
std::optional<std::int64_t> exceeded_threads(Pipelines& pipelines, const Plan& plan);

/// Runs a plan on the GPU and waits for its end. Throws apple::Error where it fails.
void launch(const Gpu& gpu, Pipelines& pipelines, const Plan& plan, const Staging& staging);

/// Encodes a plan to a command buffer that has no open encoder.
void encode(Pipelines& pipelines, const Plan& plan, const Staging& staging,
            apple::Handle<apple::MTLCommandBuffer> commands);

/// Commits, waits, and throws apple::Error with the reason where the GPU failed.
void run_to_end(apple::Handle<apple::MTLCommandBuffer> commands);

/// Waits for what was committed before; throws likewise.
void wait_for(apple::Handle<apple::MTLCommandBuffer> commands);

}  // namespace sdpa::metal
