// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "sdpa/metal/gpu.h"
#include "sdpa/metal/lru_cache.h"

namespace sdpa::metal {

/// A compiled kernel, and how many threads a threadgroup of it may have on this GPU.
struct Pipeline {
  apple::Ref<apple::MTLComputePipelineState> state;
  std::int64_t max_threads = 0;
};

/// The kernels that this process compiled, by name. Each is compiled once; the least recently
/// used are dropped.
class Pipelines {
 public:
  /// Gives the complete source of a dispatch.
  using Source = std::function<std::string(const Dispatch&)>;

  Pipelines(const Gpu& gpu, Source source, CacheLimits limits = {})
      : gpu_(gpu), source_(std::move(source)), cache_(limits) {}

  /// Throws apple::Error with what the compiler says. An autorelease pool has to be around it.
  std::shared_ptr<const Pipeline> find(const Dispatch& dispatch);

  std::size_t size() const { return cache_.size(); }

 private:
  Pipeline compile(const Dispatch& dispatch) const;
  apple::Ref<apple::MTLLibrary> library(const Dispatch& dispatch) const;

  const Gpu& gpu_;
  const Source source_;
  LruCache<std::string, Pipeline> cache_;
};

}  // namespace sdpa::metal
