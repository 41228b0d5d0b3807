// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "tests/apple_fake/executor.h"

namespace sdpa::apple_fake {

/// Kernels written as C++ functions. A source offers those that it names as "kernel void NAME";
/// "#error" in it is an error of the compiler, as usual.
class HostKernels : public KernelExecutor {
 public:
  using Code = std::function<void(const Launch&)>;

  void add(KernelInfo info, Code code) {
    std::string name = info.name;
    kernels_[std::move(name)] = {std::move(info), std::move(code)};
  }

  CompiledSource compile(const std::string& source) override {
    if (source.find("#error") != source.npos) return {{}, "program_source:1: error: #error"};
    CompiledSource compiled;
    for (const auto& [name, kernel] : kernels_) {
      if (source.find("kernel void " + name) != source.npos) {
        compiled.kernels.push_back(kernel.first);
      }
    }
    return compiled;
  }

  void run(const Launch& launch) override { kernels_.at(launch.kernel).second(launch); }

 private:
  std::map<std::string, std::pair<KernelInfo, Code>> kernels_;
};

}  // namespace sdpa::apple_fake
