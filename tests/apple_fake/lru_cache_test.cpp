// SPDX-License-Identifier: MIT
#include "sdpa/metal/lru_cache.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace sdpa::metal {
namespace {

using Cache = LruCache<std::string, int>;

Costed<int> costing(int value, std::size_t bytes = 1) {
  return {std::make_shared<int>(value), bytes};
}

TEST(LruCache, MakesEachValueOnce) {
  Cache cache({});
  int made = 0;
  const auto make = [&] { return costing(++made); };
  EXPECT_EQ(*cache.find_or_make("a", make), 1);
  EXPECT_EQ(*cache.find_or_make("b", make), 2);
  EXPECT_EQ(*cache.find_or_make("a", make), 1);
  EXPECT_EQ(made, 2);
}

TEST(LruCache, DropsTheLeastRecentlyUsed) {
  Cache cache({.entries = 2});
  const auto put = [&](const char* key, int value) {
    return *cache.find_or_make(key, [&] { return costing(value); });
  };
  put("a", 1);
  put("b", 2);
  put("a", 0);
  put("c", 3);
  EXPECT_EQ(cache.size(), 2u);
  EXPECT_EQ(put("a", 9), 1);
  EXPECT_EQ(put("b", 8), 8);
}

TEST(LruCache, IsBoundedInBytes) {
  Cache cache({.entries = 100, .bytes = 10});
  for (int i = 0; i < 8; ++i) cache.find_or_make(std::to_string(i), [&] { return costing(i, 4); });
  EXPECT_EQ(cache.size(), 2u);
  EXPECT_EQ(cache.bytes(), 8u);
  const auto large = cache.find_or_make("large", [] { return costing(7, 99); });
  EXPECT_EQ(*large, 7);  // too large to keep, yet in use
  EXPECT_EQ(cache.bytes(), 0u);
}

TEST(LruCache, ValuesInUseOutliveTheirEntries) {
  Cache cache({.entries = 1});
  const auto held = cache.find_or_make("a", [] { return costing(1); });
  cache.clear();
  EXPECT_EQ(cache.size(), 0u);
  EXPECT_EQ(*held, 1);
}

TEST(LruCache, ForgetsFailures) {
  Cache cache({});
  const auto fail = []() -> Costed<int> { throw std::runtime_error("no"); };
  EXPECT_THROW(cache.find_or_make("a", fail), std::runtime_error);
  EXPECT_EQ(cache.size(), 0u);
  EXPECT_EQ(*cache.find_or_make("a", [] { return costing(1); }), 1);
}

TEST(LruCache, EightThreadsMakeEachValueOnce) {
  Cache cache({.entries = 64});
  std::atomic<int> made{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        const int key = i % 20;
        const auto value = cache.find_or_make(std::to_string(key), [&] {
          ++made;
          std::this_thread::yield();
          return costing(key);
        });
        EXPECT_EQ(*value, key);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(made, 20);
}

TEST(LruCache, ThreadsAgreeWhileValuesAreDropped) {
  Cache cache({.entries = 3});
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const int key = (i * 7 + t) % 11;
        EXPECT_EQ(*cache.find_or_make(std::to_string(key), [&] { return costing(key); }), key);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(cache.size(), 3u);
}

}  // namespace
}  // namespace sdpa::metal
