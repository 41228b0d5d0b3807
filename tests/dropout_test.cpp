// SPDX-License-Identifier: MIT
#include "sdpa/dropout.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "sdpa/reference.h"

namespace sdpa {
namespace {

struct KnownAnswer {
  PhiloxBlock counter;
  unsigned int key_low, key_high;
  PhiloxBlock output;
};

/// Vectors for Philox4x32-10 that its authors publish with their Random123 library.
constexpr std::array<KnownAnswer, 3> kKnownAnswers{{
    {{0, 0, 0, 0}, 0, 0, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
    {{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu},
     0xffffffffu,
     0xffffffffu,
     {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}},
    {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
     0xa4093822u,
     0x299f31d0u,
     {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}},
}};

TEST(Philox, GivesThePublishedBlocks) {
  for (const KnownAnswer& known : kKnownAnswers) {
    const PhiloxBlock block = philox(known.counter, known.key_low, known.key_high);
    EXPECT_EQ(block.x, known.output.x);
    EXPECT_EQ(block.y, known.output.y);
    EXPECT_EQ(block.z, known.output.z);
    EXPECT_EQ(block.w, known.output.w);
  }
}

TEST(DropoutWord, TakesItsPlaceInTheBlock) {
  // Key 4 * 0x243f6a88 would overflow, so the pi vector is moved to a small key.
  const PhiloxBlock block = philox({5, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 7, 9);
  const std::array words{block.x, block.y, block.z, block.w};
  for (unsigned int lane = 0; lane < 4; ++lane)
    EXPECT_EQ(dropout_word(20 + lane, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 7, 9), words[lane]);
}

TEST(Dropout, ThresholdIsTheRoundedProbability) {
  EXPECT_EQ(Dropout{.probability = 0}.threshold(), 0u);
  EXPECT_EQ(Dropout{.probability = 0.5}.threshold(), 0x80000000u);
  EXPECT_EQ(Dropout{.probability = 0.1}.threshold(), 429496730u);
  EXPECT_EQ(Dropout{.probability = 1}.threshold(), 0xffffffffu);
}

TEST(Dropout, RescaleKeepsTheMean) {
  EXPECT_DOUBLE_EQ(Dropout{.probability = 0.2}.rescale(), 1.25);
  EXPECT_EQ(Dropout{.probability = 1}.rescale(), 0) << "nothing is kept, and nothing is divided";
}

TEST(Dropout, KeepsTheAskedShareInEveryDirection) {
  constexpr int kSide = 200;
  const Dropout dropout{.probability = 0.3, .seed = 42, .offset = 3};
  const double deviation = std::sqrt(0.3 * 0.7 / (kSide * kSide));
  for (int head = 0; head < 3; ++head) {
    int kept = 0;
    for (int query = 0; query < kSide; ++query)
      for (int key = 0; key < kSide; ++key) kept += reference::is_kept(dropout, head, query, key);
    EXPECT_NEAR(static_cast<double>(kept) / (kSide * kSide), 0.7, 4 * deviation) << head;
  }
}

TEST(Dropout, DependsOnEveryCoordinate) {
  const auto pattern = [](const Dropout& dropout, int head, int query) {
    std::uint64_t bits = 0;
    for (int key = 0; key < 64; ++key)
      bits = bits << 1 | (reference::is_kept(dropout, head, query, key) ? 1u : 0u);
    return bits;
  };
  const Dropout dropout{.probability = 0.5, .seed = 1};
  const std::uint64_t first = pattern(dropout, 0, 0);
  EXPECT_EQ(pattern(dropout, 0, 0), first);
  EXPECT_NE(pattern(dropout, 1, 0), first);
  EXPECT_NE(pattern(dropout, 0, 1), first);
  EXPECT_NE(pattern({.probability = 0.5, .seed = 2}, 0, 0), first);
  EXPECT_NE(pattern({.probability = 0.5, .seed = 1ull << 32 | 1}, 0, 0), first);
  EXPECT_NE(pattern({.probability = 0.5, .seed = 1, .offset = 1}, 0, 0), first);
  EXPECT_EQ(pattern({.probability = 0.5, .seed = 1, .first_head = 5}, 2, 0),
            pattern(dropout, 7, 0));
}

}  // namespace
}  // namespace sdpa
