// SPDX-License-Identifier: MIT
#pragma once

#include <mutex>
#include <stdexcept>
#include <string>

#include "sdpa/metal/kernel_set.h"
#include "tests/apple_fake/executor.h"
#include "tests/metal_kernels/simulated_metal.h"

namespace sdpa::apple_fake {

/// The library's own Metal kernels, run in the simulator: every load and store checked.
class SimulatedKernels : public KernelExecutor {
 public:
  CompiledSource compile(const std::string& source) override {
    const std::string opening = "\nSDPA_INSTANTIATE(\"";
    const std::size_t place = source.rfind(opening);
    if (place == std::string::npos) return {{}, "error: the source instantiates no kernel"};
    const std::size_t begin = place + opening.size();
    const std::string name = source.substr(begin, source.find('"', begin) - begin);
    if (source != metal::source_of(name)) return {{}, "error: the source is not the library's"};
    return {{{.name = name}}, ""};
  }

  void run(const Launch& launch) override {
    const std::lock_guard lock(one_specialization_at_a_time_);
    sim::Dispatch dispatch{.function = metal::select_function(launch.kernel),
                           .grid = size_of(launch.grid),
                           .group = size_of(launch.group)};
    for (std::size_t index = 0; index < launch.buffers.size(); ++index) {
      const BoundBuffer& buffer = launch.buffers[index];
      if (buffer.data != nullptr)
        dispatch.bindings.push_back(
            {.index = static_cast<int>(index), .data = buffer.data, .bytes = buffer.bytes});
    }
    const sim::Result result = sim::run(dispatch, {.seed = 1});
    if (!result.ok()) throw std::runtime_error(launch.kernel + ": " + result.faults[0]);
    ++launches;
  }

  int launches = 0;

 private:
  static sim::Size size_of(const apple::MTLSize& size) {
    return {static_cast<unsigned>(size.width), static_cast<unsigned>(size.height),
            static_cast<unsigned>(size.depth)};
  }

  std::mutex one_specialization_at_a_time_;
};

}  // namespace sdpa::apple_fake
