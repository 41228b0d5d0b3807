// SPDX-License-Identifier: MIT
// Every rule that the fake watches is broken here once, and the sentence it says is read.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "sdpa/metal/foundation.h"
#include "tests/apple_fake/host_kernels.h"
#include "tests/apple_fake/mac.h"

namespace sdpa::apple {
namespace {

using apple_fake::FakeMac;
using apple_fake::GpuFaults;
using apple_fake::HostKernels;
using apple_fake::Launch;

constexpr MTLSize kOne = {1, 1, 1};
constexpr MTLSize kLanes = {32, 1, 1};
constexpr const char* kMetal = "/System/Library/Frameworks/Metal.framework/Metal";
constexpr const char* kSource = "kernel void twice";
enum class LanguageVersion : NSUInteger { k3_1 = (3 << 16) + 1, k4_0 = 4 << 16 };
enum class MathMode : NSInteger { kSafe = 0, kFast = 2 };
enum class Status : NSUInteger { kCompleted = 4, kFailed = 5 };
constexpr NSUInteger kShared = 0;

void twice(const Launch& launch) {
  auto* x = reinterpret_cast<float*>(launch.buffers[0].data);
  for (std::size_t i = 0; i < launch.buffers[0].bytes / sizeof(float); ++i) x[i] *= 2;
}

HostKernels test_kernels() {
  HostKernels kernels;
  kernels.add({.name = "twice", .bindings = {{.index = 0, .bytes = 64}}}, twice);
  kernels.add({.name = "narrow", .max_threads = 16}, twice);
  kernels.add({.name = "wide", .threadgroup_bytes = 32 << 10}, twice);
  kernels.add({.name = "broken"}, [](const Launch&) { throw Error("a fault in the kernel"); });
  return kernels;
}

/// Everything between a device and an open encoder; ends and commits on demand.
struct Session {
  AutoreleasePool pool;
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

class Rules : public testing::Test {
 protected:
  /// Runs code that breaks a rule; `sentence` has to be among what the fake says of it.
  template <class Code>
  void breaks(const std::string& sentence, Code code) {
    {
      FakeMac mac(kernels_);
      mac.gpu.faults = faults_;
      try {
        code();
      } catch (const Error& error) {
        heard_ += std::string("thrown: ") + error.what() + "\n";
      }
      for (const std::string& mistake : mac.runtime.finish()) heard_ += mistake + "\n";
    }
    EXPECT_NE(heard_.find(sentence), heard_.npos)
        << "heard: " << (heard_.empty() ? "nothing" : heard_);
  }

  HostKernels kernels_ = test_kernels();
  GpuFaults faults_;
  std::string heard_;
};

TEST_F(Rules, AKernelRunsWithoutAComplaint) {
  FakeMac mac(kernels_);
  {
    Session s;
    for (int i = 0; i < 16; ++i) s.contents()[i] = static_cast<float>(i);
    s.use("twice");
    s.bind(s.data, 0, 0);
    s.dispatch();
    s.dispatch();
    s.end();
    s.commit();
    s.wait();
    EXPECT_EQ(send<Status>(s.commands, "status"_sel), Status::kCompleted);
    EXPECT_FALSE(send<Handle<NSError>>(s.commands, "error"_sel));
    for (int i = 0; i < 16; ++i) EXPECT_EQ(s.contents()[i], 4 * static_cast<float>(i));
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
  EXPECT_EQ(mac.gpu.dispatches, 2);
  EXPECT_EQ(mac.gpu.allocated_bytes, 0u);
}

TEST_F(Rules, CommandBuffersOfAQueueRunInOrder) {
  FakeMac mac(kernels_);
  {
    Session s;
    s.end();
    s.contents()[0] = 1;
    const auto pipeline = s.pipeline("twice");
    std::vector<Handle<MTLCommandBuffer>> all;
    for (int i = 0; i < 10; ++i) {
      s.commands = send<Handle<MTLCommandBuffer>>(s.queue, "commandBuffer"_sel);
      s.encoder = send<Handle<MTLComputeCommandEncoder>>(s.commands, "computeCommandEncoder"_sel);
      send<void>(s.encoder, "setComputePipelineState:"_sel, pipeline);
      s.bind(s.data, 0, 0);
      s.dispatch();
      s.end();
      s.commit();
      all.push_back(s.commands);
    }
    for (const auto& each : all) send<void>(each, "waitUntilCompleted"_sel);
    EXPECT_EQ(s.contents()[0], 1024);
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
}

// What only a wrong cast could send: `send` itself refuses these when compiled.

TEST_F(Rules, MisspeltSelector) {
  breaks("has no method setBuffer:offset:index:; the nearest is setBuffer:offset:atIndex:", [] {
    Session s;
    s.end();
    Runtime& rt = runtime();
    rt.implementation(s.encoder.id(), rt.selector("setBuffer:offset:index:"), "v@:@QQ");
  });
}

TEST_F(Rules, NarrowIntegerForNSUInteger) {
  breaks(
      "sent as void (object, NSUInteger, 32-bit unsigned), but it is void (object, NSUInteger, "
      "NSUInteger)",
      [] {
        Session s;
        s.end();
        Runtime& rt = runtime();
        rt.implementation(s.encoder.id(), rt.selector("setBuffer:offset:atIndex:"), "v@:@QI");
      });
}

TEST_F(Rules, WrongSignOfAResult) {
  breaks("-[MTLBuffer length] sent as NSInteger (), but it is NSUInteger ()", [] {
    Session s;
    s.end();
    runtime().implementation(s.data.id(), runtime().selector("length"), "q@:");
  });
}

TEST_F(Rules, FunctionOfTheWrongType) {
  breaks("MTLCreateSystemDefaultDevice called as NSUInteger (), but it is object ()", [] {
    void* framework = runtime().framework(kMetal);
    runtime().function(framework, "MTLCreateSystemDefaultDevice", "Q");
  });
}

// Lifetimes.

TEST_F(Rules, MissingRelease) {
  breaks("leak of MTLBuffer made by -[MTLDevice newBufferWithLength:options:]", [] {
    Session s;
    s.end();
    (void)s.data.leak();
  });
}

TEST_F(Rules, DoubleRelease) {
  breaks("released once too often: MTLBuffer", [] {
    Session s;
    s.end();
    runtime().release(s.data.id());
  });
}

TEST_F(Rules, UseAfterThePool) {
  breaks("commit: use after its last release of MTLCommandBuffer", [] {
    Handle<MTLCommandBuffer> commands;
    {
      Session s;
      s.end();
      commands = s.commands;
    }
    send<void>(commands, "commit"_sel);
  });
}

TEST_F(Rules, ReleasedArgument) {
  breaks("argument of -[MTLComputeCommandEncoder setBuffer:offset:atIndex:]: use after", [] {
    Session s;
    s.end();
    const Handle<MTLBuffer> gone = s.data;
    s.data = {};
    send<void>(s.encoder, "setBuffer:offset:atIndex:"_sel, gone, NSUInteger{0}, NSUInteger{0});
  });
}

TEST_F(Rules, MissingPool) {
  breaks("no autorelease pool around the message that made MTLDevice",
         [] { call<Ref<MTLDevice>, "MTLCreateSystemDefaultDevice">(runtime().framework(kMetal)); });
}

TEST_F(Rules, MissingPoolLeaksWhatIsAutoreleased) {
  breaks("leak of NSString", [] { make_string("nobody keeps this"); });
}

TEST_F(Rules, PoolNeverPopped) {
  breaks("an autorelease pool was never popped", [] { runtime().push_pool(); });
}

TEST_F(Rules, ArgumentOfAnotherClass) {
  breaks("newLibraryWithSource:options:error:] is the wrong one: MTLBuffer", [] {
    Session s;
    s.end();
    Handle<NSError> error;
    send<Ref<MTLLibrary>>(s.device, "newLibraryWithSource:options:error:"_sel, s.data, kNil,
                          error.slot());
  });
}

TEST_F(Rules, NilWhereAnObjectIsNeeded) {
  breaks("nil as an argument of -[MTLComputeCommandEncoder setComputePipelineState:]", [] {
    Session s;
    s.end();
    send<void>(s.encoder, "setComputePipelineState:"_sel, kNil);
  });
}

// The order of commands.

TEST_F(Rules, MissingEndEncoding) {
  breaks("commit while an encoder is open: endEncoding was not sent", [] { Session().commit(); });
}

TEST_F(Rules, EndEncodingTwice) {
  breaks("endEncoding sent twice", [] {
    Session s;
    s.end();
    s.end();
  });
}

TEST_F(Rules, EncoderDroppedOpen) {
  breaks("an encoder was released before endEncoding", [] { Session s; });
}

TEST_F(Rules, TwoEncodersAtOnce) {
  breaks("a second encoder while one is open", [] {
    Session s;
    send<Handle<MTLComputeCommandEncoder>>(s.commands, "computeCommandEncoder"_sel);
  });
}

TEST_F(Rules, CommitTwice) {
  breaks("commit sent twice", [] {
    Session s;
    s.end();
    s.commit();
    s.commit();
  });
}

TEST_F(Rules, WorkNeverCommitted) {
  breaks("a command buffer with work was never committed", [] {
    Session s;
    s.use("twice");
    s.bind(s.data, 0, 0);
    s.dispatch();
    s.end();
  });
}

TEST_F(Rules, WaitBeforeCommit) {
  breaks("waitUntilCompleted before commit", [] {
    Session s;
    s.end();
    s.wait();
  });
}

TEST_F(Rules, ResultReadBeforeTheEnd) {
  breaks("contents of a buffer that the GPU is still using", [] {
    Session s;
    s.use("twice");
    s.bind(s.data, 0, 0);
    s.dispatch();
    s.end();
    s.commit();
    s.contents();
  });
}

TEST_F(Rules, EncodingAfterTheEnd) {
  breaks("dispatchThreadgroups:threadsPerThreadgroup:] after endEncoding", [] {
    Session s;
    s.end();
    s.dispatch();
  });
}

// Dispatches.

TEST_F(Rules, NoPipelineState) {
  breaks("without a pipeline state", [] { Session().dispatch(); });
}

TEST_F(Rules, MoreThreadsThanThePipelineAllows) {
  breaks("32 threads in a threadgroup, the pipeline allows 16", [] {
    Session s;
    s.use("narrow");
    s.dispatch();
  });
}

TEST_F(Rules, EmptyGrid) {
  breaks("no threads", [] {
    Session s;
    s.use("narrow");
    s.dispatch({0, 1, 1});
  });
}

TEST_F(Rules, TooMuchThreadgroupMemory) {
  breaks("32784 bytes of threadgroup memory", [] {
    Session s;
    s.use("wide");
    send<void>(s.encoder, "setThreadgroupMemoryLength:atIndex:"_sel, NSUInteger{16}, NSUInteger{0});
    s.dispatch();
  });
}

TEST_F(Rules, OddThreadgroupMemory) {
  breaks("20 is no multiple of 16 bytes", [] {
    Session s;
    send<void>(s.encoder, "setThreadgroupMemoryLength:atIndex:"_sel, NSUInteger{20}, NSUInteger{0});
  });
}

TEST_F(Rules, UnsetBuffer) {
  breaks("twice: buffer 0 is not set", [] {
    Session s;
    s.use("twice");
    s.dispatch();
  });
}

TEST_F(Rules, BufferTooSmallForItsKernel) {
  breaks("twice: buffer 0 has 60 bytes, the kernel needs 64", [] {
    Session s;
    s.use("twice");
    s.bind(s.data, 4, 0);
    s.dispatch();
  });
}

TEST_F(Rules, OffsetPastTheEnd) {
  breaks("offset 64 is past the end of 64 bytes", [] {
    Session s;
    s.bind(s.data, 64, 0);
  });
}

TEST_F(Rules, IndexPastTheTable) {
  breaks("there is no index 31", [] {
    Session s;
    s.bind(s.data, 0, 31);
  });
}

TEST_F(Rules, TooManyInlineBytes) {
  breaks("4097 bytes, allowed are 1 to 4096", [] {
    Session s;
    const std::vector<char> bytes(4097);
    send<void>(s.encoder, "setBytes:length:atIndex:"_sel, static_cast<const void*>(bytes.data()),
               NSUInteger{bytes.size()}, NSUInteger{0});
  });
}

// Memory and libraries.

TEST_F(Rules, SharedMemoryHasToBePages) {
  breaks("not whole pages of 16 KiB", [] {
    Session s;
    s.end();
    float x[16];
    send<Ref<MTLBuffer>>(s.device, "newBufferWithBytesNoCopy:length:options:deallocator:"_sel,
                         static_cast<void*>(x), NSUInteger{sizeof x}, kShared, kNoBlock);
  });
}

TEST_F(Rules, BufferOfNoBytes) {
  breaks("a buffer of no bytes", [] {
    Session s;
    s.end();
    s.buffer(0);
  });
}

TEST_F(Rules, LanguageLeftToTheSystem) {
  breaks("compiled without a language version", [] {
    Session s;
    s.end();
    const auto options = send<Ref<MTLCompileOptions>>(class_of<MTLCompileOptions>(), "new"_sel);
    send<void>(options, "setMathMode:"_sel, MathMode::kSafe);
    s.library(kSource, options);
  });
}

TEST_F(Rules, FastMathematics) {
  breaks("compiled with fast mathematics", [] {
    Session s;
    s.end();
    const auto options = s.options();
    send<void>(options, "setMathMode:"_sel, MathMode::kFast);
    s.library(kSource, options);
  });
}

// What a real system may do is no mistake of the caller's: it is told, and nothing is noted.

TEST_F(Rules, FaultsOfTheSystemAreNoMistakes) {
  FakeMac mac(kernels_, {.macos_major = 15});
  {
    Session s;
    s.end();
    EXPECT_THROW(s.library("#error", s.options()), Error);
    const auto newer = s.options();
    send<void>(newer, "setLanguageVersion:"_sel, LanguageVersion::k4_0);
    EXPECT_THROW(s.library(kSource, newer), Error);
    const auto from = s.library(kSource, s.options());
    EXPECT_FALSE(send<Ref<MTLFunction>>(from, "newFunctionWithName:"_sel, make_string("other")));
    mac.gpu.faults.pipeline_error = "no registers left";
    EXPECT_FALSE(s.pipeline("twice"));
    mac.gpu.faults.memory_bytes = 100;
    EXPECT_TRUE(s.buffer(36));
    EXPECT_FALSE(s.buffer(37));
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
}

TEST_F(Rules, AFailingKernelFailsItsCommandBuffer) {
  FakeMac mac(kernels_);
  {
    Session s;
    s.use("broken");
    s.dispatch();
    s.end();
    s.commit();
    s.wait();
    EXPECT_EQ(send<Status>(s.commands, "status"_sel), Status::kFailed);
    EXPECT_EQ(reason_of(send<Handle<NSError>>(s.commands, "error"_sel)), "a fault in the kernel");
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
}

}  // namespace
}  // namespace sdpa::apple
