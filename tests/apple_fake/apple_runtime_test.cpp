// SPDX-License-Identifier: MIT
// The code for Apple's own runtime, over a stand-in for libobjc (libobjc_stub.cpp).
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "sdpa/metal/foundation.h"
#include "tests/apple_fake/host_kernels.h"
#include "tests/apple_fake/mac.h"

/// The fake that the stand-in hands everything to.
sdpa::apple_fake::FakeRuntime* stub_runtime = nullptr;

namespace sdpa::apple {
namespace {

using apple_fake::FakeMac;
using apple_fake::HostKernels;

constexpr const char* kMetal = "/System/Library/Frameworks/Metal.framework/Metal";

class AppleRuntime : public testing::Test {
 protected:
  AppleRuntime() {
    stub_runtime = &mac_.runtime;
    apple_ = open_apple_runtime({.root = SDPA_STUB_ROOT, .check = MessageCheck::kOn});
    use_runtime(apple_.get());
  }

  void TearDown() override { EXPECT_EQ(mac_.runtime.finish(), std::vector<std::string>()); }

  HostKernels kernels_;
  FakeMac mac_{kernels_};
  std::unique_ptr<Runtime> apple_;
};

TEST_F(AppleRuntime, SendsMessages) {
  const AutoreleasePool pool;
  EXPECT_EQ(text_of(make_string("through registers")), "through registers");
  EXPECT_TRUE(macos_at_least(15));  // a structure as an argument
  EXPECT_TRUE(make_number(2.5));    // a floating-point register
  EXPECT_THROW(require_class("NSNothing"), Error);
}

TEST_F(AppleRuntime, ReachesMetal) {
  const AutoreleasePool pool;
  void* metal = runtime().framework(kMetal);
  ASSERT_NE(metal, nullptr);
  mac_.runtime.framework("CoreGraphics");  // there is no stand-in for its binary
  const auto device = call<Ref<MTLDevice>, "MTLCreateSystemDefaultDevice">(metal);
  EXPECT_EQ(text_of(send<Handle<NSString>>(device, "name"_sel)), "Apple M4");
  EXPECT_TRUE(responds(device, "maxBufferLength"_sel));
  EXPECT_FALSE(runtime().responds(device.id(), runtime().selector("maxBufferLengt")));
  EXPECT_EQ(runtime().framework("/System/Library/Frameworks/Other.framework/Other"), nullptr);
  EXPECT_EQ(runtime().function(metal, "MTLCreateOther", "@"), nullptr);
}

TEST_F(AppleRuntime, ComparesTheWholeTable) {
  EXPECT_TRUE(compare_messages(*apple_, 15).empty());
  EXPECT_EQ(apple_->system_encoding(Kind::kInstance, "MTLBuffer", "length"), "Q@:");
  EXPECT_EQ(apple_->system_encoding(Kind::kInstance, "NSNothing", "length"), "");
}

TEST_F(AppleRuntime, ChecksEachMessageIfAsked) {
  const AutoreleasePool pool;
  const auto string = make_string("text");
  const Selector selector = runtime().selector("UTF8String");
  try {
    runtime().implementation(string.id(), selector, "Q@:");
    FAIL() << "not noticed";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "NSString UTF8String: sent as Q@:, but the system has r*@:");
  }
  try {
    runtime().implementation(string.id(), runtime().selector("length"), "Q@:");
    FAIL() << "not noticed";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "NSString length: sent as Q@:, but the system has no such method");
  }
}

TEST(AppleRuntimeMissing, SaysWhichFunctionIsNotThere) {
  try {
    open_apple_runtime({.root = SDPA_EMPTY_ROOT});
    FAIL() << "a runtime was found";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "The Objective-C runtime of this system has no objc_getClass.");
  }
}

}  // namespace
}  // namespace sdpa::apple
