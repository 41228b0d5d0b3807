// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/apple_fake/foundation.h"
#include "tests/apple_fake/gpu.h"

namespace sdpa::apple_fake {

/// A whole fake Mac, in use as the runtime for as long as it lives.
class FakeMac {
 public:
  explicit FakeMac(KernelExecutor& executor, System system = {}, GpuModel model = {})
      : gpu{.executor = executor, .model = std::move(model)}, runtime(std::move(system)) {
    install_foundation(runtime);
    install_metal(runtime, gpu);
    install_graph(runtime);
    apple::use_runtime(&runtime);
  }

  FakeMac(const FakeMac&) = delete;
  FakeMac& operator=(const FakeMac&) = delete;

  ~FakeMac() { apple::use_runtime(nullptr); }

  FakeGpu gpu;
  FakeRuntime runtime;
};

}  // namespace sdpa::apple_fake
