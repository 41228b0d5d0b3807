// SPDX-License-Identifier: MIT
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "sdpa/metal/foundation.h"
#include "tests/apple_fake/host_kernels.h"
#include "tests/apple_fake/mac.h"

/// What the tests of the fake's rules share: kernels, one session with Metal, and the fixture.
namespace sdpa::apple {

using apple_fake::FakeMac;
using apple_fake::HostKernels;
using apple_fake::Launch;

inline constexpr MTLSize kOne = {1, 1, 1};
inline constexpr MTLSize kLanes = {32, 1, 1};
inline constexpr const char* kMetal = "/System/Library/Frameworks/Metal.framework/Metal";
inline constexpr const char* kCoreGraphics =
    "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics";
inline constexpr const char* kSource = "kernel void twice";
enum class LanguageVersion : NSUInteger { k3_1 = (3 << 16) + 1, k4_0 = 4 << 16 };
enum class MathMode : NSInteger { kSafe = 0, kFast = 2 };
enum class Status : NSUInteger { kCompleted = 4, kFailed = 5 };
inline constexpr NSUInteger kShared = 0;

inline void twice(const Launch& launch) {
  auto* x = reinterpret_cast<float*>(launch.buffers[0].data);
  for (std::size_t i = 0; i < launch.buffers[0].bytes / sizeof(float); ++i) x[i] *= 2;
}

inline HostKernels test_kernels() {
  HostKernels kernels;
  kernels.add({.name = "twice", .bindings = {{.index = 0, .bytes = 64}}}, twice);
  kernels.add({.name = "narrow", .max_threads = 16}, twice);
  kernels.add({.name = "wide", .threadgroup_bytes = (32 << 10) + 1}, twice);
  kernels.add({.name = "broken"}, [](const Launch&) { throw Error("a fault in the kernel"); });
  return kernels;
}

/// Everything between a device and an open encoder; ends and commits on demand.
struct Session {
  AutoreleasePool pool;
  void* graphics = runtime().framework(kCoreGraphics);
  void* framework = runtime().framework(kMetal);
  Ref<MTLDevice> device = call<Ref<MTLDevice>, "MTLCreateSystemDefaultDevice">(framework);
  Ref<MTLCommandQueue> queue = send<Ref<MTLCommandQueue>>(device, "newCommandQueue"_sel);
  Handle<MTLCommandBuffer> commands = send<Handle<MTLCommandBuffer>>(queue, "commandBuffer"_sel);
  Handle<MTLComputeCommandEncoder> encoder =
      send<Handle<MTLComputeCommandEncoder>>(commands, "computeCommandEncoder"_sel);
  Ref<MTLBuffer> data = buffer(64);

  Ref<MTLBuffer> buffer(NSUInteger bytes) {
    return send<Ref<MTLBuffer>>(device, "newBufferWithLength:options:"_sel, bytes, kShared);
  }

  Ref<MTLCompileOptions> options() {
    auto made = send<Ref<MTLCompileOptions>>(class_of<MTLCompileOptions>(), "new"_sel);
    send<void>(made, "setLanguageVersion:"_sel, LanguageVersion::k3_1);
    send<void>(made, "setMathMode:"_sel, MathMode::kSafe);
    return made;
  }

  Ref<MTLLibrary> library(const char* source, const Ref<MTLCompileOptions>& with) {
    Handle<NSError> error;
    auto made = send<Ref<MTLLibrary>>(device, "newLibraryWithSource:options:error:"_sel,
                                      make_string(source), with, error.slot());
    if (!made) throw Error(reason_of(error));
    return made;
  }

  Ref<MTLComputePipelineState> pipeline(const std::string& kernel) {
    const auto from = library(("kernel void " + kernel).c_str(), options());
    const auto function =
        send<Ref<MTLFunction>>(from, "newFunctionWithName:"_sel, make_string(kernel));
    Handle<NSError> error;
    return send<Ref<MTLComputePipelineState>>(
        device, "newComputePipelineStateWithFunction:error:"_sel, function, error.slot());
  }

  void use(const std::string& kernel) {
    send<void>(encoder, "setComputePipelineState:"_sel, pipeline(kernel));
  }

  void bind(const Ref<MTLBuffer>& buffer, NSUInteger offset, NSUInteger index) {
    send<void>(encoder, "setBuffer:offset:atIndex:"_sel, buffer, offset, index);
  }

  void dispatch(MTLSize grid = kOne, MTLSize group = kLanes) {
    send<void>(encoder, "dispatchThreadgroups:threadsPerThreadgroup:"_sel, grid, group);
  }

  void end() { send<void>(encoder, "endEncoding"_sel); }

  void commit() { send<void>(commands, "commit"_sel); }

  void wait() { send<void>(commands, "waitUntilCompleted"_sel); }

  float* contents() { return static_cast<float*>(send<void*>(data, "contents"_sel)); }
};

/// Each test breaks one rule and reads what is noted of it.
class Rules : public testing::Test {
 protected:
  /// Runs code that breaks a rule; `sentence` has to be noted, whether or not it is thrown too:
  /// the code under test may catch what is thrown.
  template <class Code>
  void breaks(const std::string& sentence, Code code) {
    std::string heard;
    {
      FakeMac mac(kernels_);
      try {
        code();
      } catch (const Error&) {
      }
      for (const std::string& mistake : mac.runtime.finish()) heard += mistake + "\n";
    }
    EXPECT_NE(heard.find(sentence), heard.npos) << "heard: " << (heard.empty() ? "nothing" : heard);
  }

  HostKernels kernels_ = test_kernels();
};

}  // namespace sdpa::apple
