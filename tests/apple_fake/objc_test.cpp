// SPDX-License-Identifier: MIT
#include "sdpa/metal/objc.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>

#include "sdpa/metal/foundation.h"
#include "sdpa/metal/message_report.h"
#include "tests/apple_fake/host_kernels.h"
#include "tests/apple_fake/mac.h"

namespace sdpa::apple {
namespace {

using apple_fake::FakeMac;
using apple_fake::HostKernels;
using testing::Test;

enum class Wide : NSUInteger { kOne = 1 };
enum class Narrow : std::uint32_t { kOne = 1 };

TEST(Encoding, NamesEveryTypeThatTravels) {
  EXPECT_EQ((kMethodEncoding<void, Handle<MTLBuffer>, NSUInteger, NSUInteger>.view()), "v@:@QQ");
  EXPECT_EQ((kMethodEncoding<Ref<MTLLibrary>, Nil, Id*>.view()), "@@:@^@");
  EXPECT_EQ((kMethodEncoding<bool, NSInteger, double, float>.view()), "B@:qdf");
  EXPECT_EQ((kMethodEncoding<const char*, const void*, void*>.view()), "r*@:r^v^v");
  EXPECT_EQ((kMethodEncoding<Wide, Narrow, NoBlock>.view()), "Q@:I@?");
  EXPECT_EQ((kMethodEncoding<void, MTLSize, const Id*>.view()), "v@:{?=QQQ}r^@");
  EXPECT_EQ((kFunctionEncoding<Ref<MTLDevice>>.view()), "@");
}

TEST(Encoding, MatchesWhatSystemsReport) {
  EXPECT_TRUE(encoding_matches("v@:@QQ", "v40@0:8@16Q24Q32"));
  EXPECT_TRUE(encoding_matches("v@:{?=QQQ}", "v40@0:8{?=QQQ}16"));
  EXPECT_TRUE(encoding_matches("@@:^v", "@24@0:8r^v16"));
  EXPECT_FALSE(encoding_matches("@@:r^v", "@24@0:8^v16"));
  EXPECT_FALSE(encoding_matches("v@:I", "v24@0:8Q16"));
  EXPECT_FALSE(encoding_matches("v@:", "v24@0:8Q16"));
  EXPECT_FALSE(encoding_matches("v@:Q", "v16@0:8"));
}

TEST(Selector, OwnershipFollowsItsFamily) {
  EXPECT_TRUE(hands_over("new") && hands_over("newCommandQueue") && hands_over("alloc"));
  EXPECT_TRUE(hands_over("copy") && hands_over("mutableCopyWithZone:") && hands_over("initWith:"));
  EXPECT_FALSE(hands_over("newest") || hands_over("initialize") || hands_over("commandBuffer"));
}

TEST(Runtime, SaysWhyThereIsNone) {
  try {
    open_apple_runtime({.root = "/nowhere"});
    FAIL() << "a runtime was found";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "There is no Objective-C runtime on this system.");
  }
}

class OnFakeMac : public Test {
 protected:
  void TearDown() override { EXPECT_EQ(mac_.runtime.finish(), std::vector<std::string>()); }

  HostKernels kernels_;
  FakeMac mac_{kernels_};
};

TEST_F(OnFakeMac, AnswersEveryDeclaredMessage) {
  const auto implemented = mac_.runtime.implemented();
  for (const Message& message : kMessages) {
    EXPECT_TRUE(std::ranges::find(implemented, &message) != implemented.end())
        << title(message) << " is declared, but the fake does not answer it";
  }
  EXPECT_TRUE(compare_messages(mac_.runtime, 15).empty());
}

TEST_F(OnFakeMac, ReportsHowTheSystemDiffers) {
  const MessageReport report = report_messages();
  EXPECT_EQ(report.reason, "");
  EXPECT_EQ(report.macos, 15);
  EXPECT_EQ(report.declared, std::size(kMessages));
  EXPECT_EQ(report.differences, std::vector<std::string>());
}

TEST(MessageReport, SaysWhyNothingWasCompared) {
  EXPECT_EQ(report_messages().reason, "There is no Objective-C runtime on this system.");
}

TEST_F(OnFakeMac, StringsAndErrorsComeBack) {
  const AutoreleasePool pool;
  EXPECT_EQ(text_of(make_string("naïve")), "naïve");
  EXPECT_EQ(text_of(Handle<NSString>()), "");
  EXPECT_EQ(reason_of(Handle<NSError>()), "no reason was given");
}

TEST_F(OnFakeMac, DictionariesFindEqualStrings) {
  const AutoreleasePool pool;
  const Id keys[] = {make_string("a").id(), make_string("b").id()};
  const Id values[] = {make_number(NSInteger{1}).id(), make_number(2.0).id()};
  const auto entries = make_dictionary(keys, values);
  EXPECT_EQ(send<Handle<NSNumber>>(entries, "objectForKey:"_sel, make_string("b")).id(), values[1]);
  EXPECT_TRUE(make_array(values));
}

TEST_F(OnFakeMac, ComparesSystemVersions) {
  const AutoreleasePool pool;
  EXPECT_TRUE(macos_at_least(14) && macos_at_least(15) && macos_at_least(15, 0));
  EXPECT_FALSE(macos_at_least(15, 1) || macos_at_least(26));
}

TEST_F(OnFakeMac, RefsBalanceTheirReferences) {
  Ref<NSString> kept;
  {
    const AutoreleasePool pool;
    kept = send<Ref<NSString>>(class_of<NSString>(), "stringWithUTF8String:"_sel, "kept");
  }
  const Ref<NSString> copy = kept;
  kept = {};
  const Ref<NSString> moved = std::move(kept);
  EXPECT_FALSE(moved);
  EXPECT_EQ(text_of(copy), "kept");
  const Ref<NSString> again = Ref<NSString>::adopt(Ref<NSString>(copy).leak());
  EXPECT_EQ(again.id(), copy.id());
}

TEST_F(OnFakeMac, RefusesNil) {
  const AutoreleasePool pool;
  try {
    send<NSUInteger>(Handle<MTLBuffer>(), "length"_sel);
    FAIL() << "nil answered";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "length was sent to nil instead of an object of MTLBuffer");
  }
}

TEST_F(OnFakeMac, SelectorsAreLookedUpFromManyThreads) {
  const auto work = [] {
    for (int i = 0; i < 200; ++i) {
      const AutoreleasePool pool;
      EXPECT_EQ(text_of(make_string("thread")), "thread");
    }
  };
  std::thread first(work);
  std::thread second(work);
  first.join();
  second.join();
}

TEST(OlderSystem, LacksNewerMessages) {
  HostKernels kernels;
  FakeMac mac(kernels, {.macos_major = 14});
  const AutoreleasePool pool;
  const auto options = send<Ref<MTLCompileOptions>>(class_of<MTLCompileOptions>(), "new"_sel);
  EXPECT_FALSE(responds(options, "setMathMode:"_sel));
  EXPECT_TRUE(responds(options, "setFastMathEnabled:"_sel));
}

TEST(OlderSystem, LacksClassesAndFunctions) {
  HostKernels kernels;
  FakeMac mac(kernels, {.missing = {"NSProcessInfo", "MTLCreateSystemDefaultDevice", "Metal"}});
  const AutoreleasePool pool;
  EXPECT_THROW(macos_at_least(14), Error);
  Runtime& rt = runtime();
  EXPECT_EQ(rt.framework("/System/Library/Frameworks/Metal.framework/Metal"), nullptr);
  void* other = rt.framework("/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics");
  EXPECT_THROW((call<Ref<MTLDevice>, "MTLCreateSystemDefaultDevice">(other)), Error);
}

/// A system that differs from the table in one message and lacks another.
class Differing : public apple_fake::FakeRuntime {
 public:
  std::string system_encoding(Kind kind, const char* owner, const char* selector) override {
    const std::string name = selector;
    if (name == "length") return "i16@0:8";
    if (name == "setMathMode:") return "";
    return std::string(find_message(kind, owner, selector)->encoding);
  }
};

TEST(CompareMessages, ReportsDifferences) {
  Differing system;
  const auto on_15 = compare_messages(system, 15);
  ASSERT_EQ(on_15.size(), 2u);
  EXPECT_EQ(title(*on_15[0].message), "-[MTLCompileOptions setMathMode:]");
  EXPECT_EQ(on_15[1].system_encoding, "i16@0:8");
  EXPECT_EQ(compare_messages(system, 14).size(), 1u);
}

}  // namespace
}  // namespace sdpa::apple
