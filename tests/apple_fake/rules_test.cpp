// SPDX-License-Identifier: MIT
// The rules of messages, lifetimes, memory and libraries: each is broken here once.
#include "tests/apple_fake/session.h"

namespace sdpa::apple {
namespace {

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
  breaks("no autorelease pool around the message that made MTLDevice", [] {
    runtime().framework(kCoreGraphics);
    call<Ref<MTLDevice>, "MTLCreateSystemDefaultDevice">(runtime().framework(kMetal));
  });
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
