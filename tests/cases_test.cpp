// SPDX-License-Identifier: MIT
#include "tests/cases.h"

#include <gtest/gtest.h>

#include <unordered_set>

namespace sdpa::cases {
namespace {

TEST(Cases, SuitesHaveTheOriginalsSizes) {
  EXPECT_EQ(suite("realistic").size(), 10u);
  EXPECT_EQ(suite("correctness").size(), 1953u);
  EXPECT_EQ(suite("extended").size(), 23u);
  EXPECT_EQ(suite("general").size(), 540u);
}

TEST(Cases, NamesAreUniqueWithinASuite) {
  for (std::string_view name : suite_names()) {
    std::unordered_set<std::string> seen;
    for (const Case& spec : suite(name)) {
      EXPECT_TRUE(seen.insert(spec.name).second) << name << ": " << spec.name;
      EXPECT_EQ(spec.suite, name);
    }
    EXPECT_FALSE(seen.empty()) << name;
  }
}

TEST(Cases, HeadsDivide) {
  for (std::string_view name : suite_names())
    for (const Case& spec : suite(name)) {
      ASSERT_GT(spec.kv_heads, 0) << spec.name;
      EXPECT_EQ(spec.q_heads % spec.kv_heads, 0) << spec.name;
    }
}

TEST(Cases, DescriptionNamesWhatIsUnusual) {
  Case spec{.dtype = DType::kBFloat16, .q_heads = 8, .kv_heads = 2, .q_len = 3, .kv_len = 5};
  spec.causal = Causal::kLowerRight;
  spec.mask = {MaskShape::kKeys, DType::kBool, MaskPattern::kTail};
  spec.dropout = 0.1;
  EXPECT_EQ(describe(spec),
            "bf16 B1 H8/2 L3x5 D1 causal(lower-right) mask(bool keys tail) dropout=0.1");
}

TEST(Cases, UnknownSuiteNamesTheKnownOnes) {
  try {
    suite("everything");
    FAIL() << "an unknown suite was accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "there is no suite 'everything'; known are realistic, correctness, extended, "
                 "general, models, masks, training, decode, short, speed, conformance");
  }
}

}  // namespace
}  // namespace sdpa::cases
