// SPDX-License-Identifier: MIT
//
// No plan asks for more than its GPU has. Plans are a pure function, so many problems on many
// devices, real ones and worse, cost little.
#include "sdpa/metal/plan.h"

#include <gtest/gtest.h>

#include <array>
#include <iostream>
#include <map>
#include <random>
#include <set>

#include "sdpa/metal/specialization.h"
#include "tests/metal_kernels/staged_sizes.h"

namespace sdpa::metal {
namespace {

constexpr std::int64_t kLargestThreadgroupMemory = 32768;  ///< of every Apple GPU
constexpr std::size_t kMostBuffers = 31;
constexpr std::size_t kMostInlineBytes = 4096;
constexpr std::int64_t kSimdWidth = 32;

using Random = std::mt19937_64;

template <typename List>
auto one_of(const List& list, Random& random) {
  return *(std::begin(list) + static_cast<std::ptrdiff_t>(random() % std::size(list)));
}

bool one_in(std::uint64_t count, Random& random) { return random() % count == 0; }

constexpr std::int64_t kDims[] = {1,  7,   8,   16,  20,  33,  64,  72,  80,  96,
                                  97, 104, 128, 160, 192, 256, 257, 300, 400, 512};
constexpr std::int64_t kLengths[] = {1, 2, 7, 8, 31, 33, 64, 129, 1000, 4096, 131072};

Problem some_problem(Random& random) {
  Problem s;
  s.dtype = one_of(std::array{DType::kFloat32, DType::kFloat16, DType::kBFloat16}, random);
  s.batch = one_of(std::array{1, 2, 16}, random);
  s.kv_heads = one_of(std::array{1, 2, 8}, random);
  s.q_heads = s.kv_heads * one_of(std::array{1, 1, 4, 7}, random);
  s.q_len = one_of(kLengths, random);
  s.kv_len = one_of(kLengths, random);
  s.qk_dim = one_of(kDims, random);
  s.v_dim = one_in(2, random) ? s.qk_dim : one_of(kDims, random);
  s.scale = 0.125;
  s.causal = one_of(std::array{Causal::kNone, Causal::kUpperLeft, Causal::kLowerRight}, random);
  if (one_in(3, random)) s.window = {100, 20};
  if (one_in(3, random)) s.softcap = 5;
  s.has_sinks = one_in(3, random);
  if (one_in(3, random)) s.dropout = {.probability = 0.1, .seed = 3, .offset = 0, .first_head = 0};
  if (one_in(2, random)) {
    s.mask_dtype = one_of(
        std::array{DType::kBool, DType::kFloat32, DType::kFloat16, DType::kBFloat16}, random);
    s.mask = s.mask_dtype == DType::kBool ? MaskKind::kBool : MaskKind::kAdditive;
    s.mask_varies_by_query = one_in(2, random);
  }
  return s;
}

/// Real GPUs, and ones that leave less to a kernel, as a system may.
DeviceInfo some_device(Random& random) {
  return {.name = "some",
          .family = one_of(std::array{7, 8, 9, 10}, random),
          .cores = one_of(std::array{1, 8, 10, 40, 80}, random),
          .threadgroup_bytes = one_of(std::array{32768, 32768, 16384, 4096, 0}, random),
          .max_threads = one_of(std::array{1024, 512, 384, 127, 96, 64, 33, 32}, random)};
}

/// What is wrong with a launch on a device; empty if nothing is.
std::string objection(const Dispatch& d, const DeviceInfo& device) {
  const std::int64_t threads = d.group.count();
  if (threads > device.max_threads) return "more threads than allowed";
  if (threads < kSimdWidth || threads % kSimdWidth != 0) return "a broken SIMD group";
  if (d.threadgroup_bytes > device.threadgroup_bytes)
    return "more threadgroup memory than there is";
  if (d.threadgroup_bytes > kLargestThreadgroupMemory) return "more than 32 KB";
  if (d.threadgroup_bytes != threadgroup_bytes(parse_host_name(d.kernel)))
    return "threadgroup memory other than the kernel's";
  if (d.grid.x < 1 || d.grid.y < 1 || d.grid.z < 1) return "an empty grid";
  if (d.grid.x * threads > std::numeric_limits<std::uint32_t>::max()) return "too wide a grid";
  if (d.buffers.size() > kMostBuffers) return "too many buffers";
  if (instantiation(parse_host_name(d.kernel)) != d.specialization) return "another's source";
  return {};
}

bool is_block(Role role) { return role == Role::kParams || role == Role::kScalars; }

/// Scratch memory is there before it is bound, and none is spare.
std::string objection(const Plan& plan) {
  std::set<Role> bound;
  for (const Dispatch& d : plan.dispatches) bound.insert(d.buffers.begin(), d.buffers.end());
  for (const Scratch& scratch : plan.scratch) {
    if (scratch.bytes <= 0) return "empty scratch memory";
    if (bound.erase(scratch.role) == 0) return "scratch memory that nobody uses";
  }
  for (Role role : bound)
    if (role >= Role::kDelta && !is_block(role))
      return "nothing to bind to " + std::string(name(role));
  return plan.dispatches.empty() ? "no launch" : "";
}

/// Every gradient that a problem has.
BackwardTensors all_gradients(const Problem& s) {
  BackwardTensors t = dense_backward(s);
  t.grad_lse = t.lse;
  if (s.mask == MaskKind::kAdditive) {
    t.grad_mask = t.mask;
    t.grad_mask.dtype = DType::kFloat32;
  }
  return t;
}

/// Every plan that there is for a problem.
std::vector<Plan> plans(const Problem& s, const DeviceInfo& device) {
  const ForwardTensors f = dense_forward(s);
  return {plan_forward(s, f, device), plan_tiles(s, f, device), plan_decode(s, f, device),
          plan_proto(s, f, device), plan_backward(s, all_gradients(s), device)};
}

TEST(Plans, AskForNoMoreThanTheDeviceHas) {
  static_assert(sizeof(AttentionParams) <= kMostInlineBytes);
  Random random(1);
  std::map<std::string, int> launches;
  for (int n = 0; n < 20'000; ++n) {
    const Problem s = some_problem(random);
    const DeviceInfo device = some_device(random);
    ASSERT_EQ(refusals(s, Pass::kForward, device), std::vector<std::string>());
    for (const Plan& plan : plans(s, device)) {
      ASSERT_EQ(objection(plan), "") << to_string(s);
      for (const Dispatch& dispatch : plan.dispatches) {
        const Specialization spec = parse_host_name(dispatch.kernel);
        ++launches[spec.kernel + (spec.has(kStaged) ? ", staged" : "")];
        ASSERT_EQ(objection(dispatch, device), "")
            << to_string(s) << ", Apple" << device.family << " with " << device.threadgroup_bytes
            << " bytes and " << device.max_threads << " threads\n"
            << to_string(plan);
      }
    }
  }
  for (const auto& [kernel, count] : launches) std::cout << kernel << ": " << count << "\n";
  EXPECT_EQ(launches.size(), 14u);  // eleven kernels, three of them staged as well
}

// The bytes that a plan states are those that its kernel declares.
TEST(Plans, StateTheThreadgroupMemoryOfTheirKernels) {
  for (const StagedSize& size : staged_sizes())
    EXPECT_EQ(threadgroup_bytes(parse_host_name(size.kernel)), size.bytes) << size.kernel;
}

TEST(Plans, StageOnOlderGpusOnly) {
  const Problem s{.dtype = DType::kFloat16,
                  .batch = 1,
                  .q_heads = 8,
                  .kv_heads = 8,
                  .q_len = 4096,
                  .kv_len = 4096,
                  .qk_dim = 64,
                  .v_dim = 64};
  for (int family : {7, 8, 9, 10}) {
    DeviceInfo device{.family = family};
    const auto bytes = [&] {
      return plan_forward(s, dense_forward(s), device).dispatches[0].threadgroup_bytes;
    };
    EXPECT_EQ(bytes() > 0, family < 9) << family;
    device.threadgroup_bytes = 512;  // not even the smallest tile
    EXPECT_EQ(bytes(), 0) << family;
  }
}

std::string refusal(const DeviceInfo& device, Problem s = {}) {
  s.batch = std::max<std::int64_t>(s.batch, 1);
  const auto reasons = refusals(s, Pass::kBackward, device);
  return reasons.empty() ? "none" : reasons[0];
}

TEST(Refusals, AreSentencesWithTheNumbers) {
  EXPECT_EQ(refusal({}), "none");
  EXPECT_EQ(refusal({.max_threads = 31}),
            "A kernel needs 32 threads a threadgroup, but the limit is 31.");
  EXPECT_EQ(refusal({.family = 6}),
            "The kernels need SIMD-group matrices, which Apple6 GPUs lack; Apple7 (M1) and later "
            "have them.");
  EXPECT_EQ(refusal({}, {.dtype = DType::kFloat64}),
            "Metal has no float64; float32, float16 and bfloat16 tensors can run.");
  EXPECT_EQ(refusal({}, {.mask = MaskKind::kAdditive, .mask_dtype = DType::kFloat64}),
            "Metal has no float64, which attn_mask has; bool, float32, float16 and bfloat16 can "
            "run.");
  EXPECT_EQ(refusal({}, {.batch = 1 << 16, .q_heads = 1 << 10, .q_len = 512}),
            "A launch has at most 2^32 threadgroups; this one has batch 65536, 1024 heads and 512 "
            "queries.");
}

}  // namespace
}  // namespace sdpa::metal
