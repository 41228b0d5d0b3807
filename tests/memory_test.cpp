// SPDX-License-Identifier: MIT
//
// Memory is proportional to lengths, never to their product, in both passes and with every feature.
// At 32 768 queries and keys one byte a pair would be a gibibyte.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <vector>

#include "sdpa/attention.h"

namespace sdpa {
namespace {

constexpr std::int64_t kLength = 32768, kDim = 8;
constexpr std::int64_t kAllowedBytes = std::int64_t{64} << 20;

/// The most memory this process has had resident so far.
std::int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return usage.ru_maxrss;
#else
  return usage.ru_maxrss * 1024;
#endif
}

std::vector<float> ramp(std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t n = 0; n < values.size(); ++n) values[n] = static_cast<float>(n % 17) / 8 - 1;
  return values;
}

TEST(Memory, GrowsWithLengthsNotWithTheirProduct) {
  std::vector<float> query = ramp(kLength * kDim), key = query, value = query, grad_out = query;
  std::vector<float> out = query, grad_query = query, grad_key = query, grad_value = query;
  std::vector<float> lse = ramp(kLength), bias = ramp(kLength), grad_bias(kLength), sink{0.5f},
                     grad_sink{0};
  const auto matrix = [](std::vector<float>& memory) {
    return dense(memory.data(), DType::kFloat32, {1, 1, kLength, kDim});
  };
  const TensorView rows = dense(lse.data(), DType::kFloat32, {1, 1, kLength, 1});
  const TensorView mask = dense(bias.data(), DType::kFloat32, {1, 1, 1, kLength});
  const TensorView grad_mask = dense(grad_bias.data(), DType::kFloat32, {1, 1, 1, kLength});
  const auto run = [&](const Attributes& attributes) {
    forward({.query = matrix(query),
             .key = matrix(key),
             .value = matrix(value),
             .mask = mask,
             .sinks = dense(sink.data(), DType::kFloat32, {1}),
             .out = matrix(out),
             .lse = rows},
            attributes);
    backward({.query = matrix(query),
              .key = matrix(key),
              .value = matrix(value),
              .mask = mask,
              .sinks = dense(sink.data(), DType::kFloat32, {1}),
              .out = matrix(out),
              .lse = rows,
              .grad_out = matrix(grad_out),
              .grad_query = matrix(grad_query),
              .grad_key = matrix(grad_key),
              .grad_value = matrix(grad_value),
              .grad_mask = grad_mask,
              .grad_sinks = dense(grad_sink.data(), DType::kFloat32, {1})},
             attributes);
  };
  const std::int64_t before = peak_resident_bytes();
  const auto expect_small_growth = [before](const char* what) {
    const std::int64_t growth = peak_resident_bytes() - before;
    std::printf("%s: peak resident memory grew by %.1f MiB\n", what,
                static_cast<double>(growth) / (1 << 20));
    EXPECT_LT(growth, kAllowedBytes) << what;
  };
  run({});
  expect_small_growth("dense");
  run({.causal = Causal::kUpperLeft, .softcap = 20, .dropout = {.probability = 0.1, .seed = 3}});
  expect_small_growth("causal with softcap and dropout");
}

}  // namespace
}  // namespace sdpa
