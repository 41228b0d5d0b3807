// SPDX-License-Identifier: MIT
//
// What our kernels do, counted by the simulator, beside what was counted of MLX's steel_attention
// (0.32.4, 32 x 32 blocks, four SIMD groups) on the same problem: one head, 256 queries and keys,
// 64 dimensions. A column where ours is higher has its reason here.
#include <gtest/gtest.h>

#include <iomanip>
#include <iostream>

#include "tests/case_data.h"
#include "tests/metal_kernels/simulated_metal.h"

namespace sdpa::metal {
namespace {

using cases::Case;

Case problem(DType dtype, Causal causal, std::int64_t dim = 64) {
  return {
      .dtype = dtype, .q_len = 256, .kv_len = 256, .qk_dim = dim, .v_dim = dim, .causal = causal};
}

const DeviceInfo kStagedDevice{.name = "m1", .family = 7, .cores = 1};
const DeviceInfo kDirectDevice{.name = "m4", .family = 9, .cores = 1};

sim::Counters sum(const std::vector<Launched>& launches) {
  sim::Counters total;
  for (const Launched& each : launches) total += each.counters;
  return total;
}

/// What both passes do.
struct Counted {
  sim::Counters forward, backward;
};

Counted count(const Case& spec, const DeviceInfo& device) {
  cases::CaseData data(spec, 1);
  std::vector<Launched> launches;
  const SimulatedMetal backend(device, {}, ForwardPlan::kTiles,
                               {.change = {}, .launched = &launches});
  backend.forward(data.problem, data.forward_tensors());
  const sim::Counters forward = sum(launches);
  launches.clear();
  backend.backward(data.problem, data.backward_tensors());
  return {forward, sum(launches)};
}

void print(const std::string& name, const sim::Counters& c) {
  std::cout << std::left << std::setw(34) << name << std::right << std::setw(8)
            << c.matrix_multiplies << std::setw(9) << c.exponentials << std::setw(8) << c.shuffles
            << std::setw(8) << c.simdgroup_barriers << std::setw(8) << c.threadgroup_barriers
            << std::setw(10) << c.device_bytes_read << std::setw(10) << c.device_bytes_written
            << std::setw(10) << c.threadgroup_bytes_read << std::setw(10)
            << c.threadgroup_bytes_written << "\n";
}

/// Counted of MLX's kernel. Device and threadgroup bytes are those that loads and stores name.
struct Rival {
  const char* name;
  DType dtype;
  Causal causal;
  std::uint64_t multiplies, shuffles, simdgroup_barriers, threadgroup_barriers;
  std::uint64_t device_read, device_written, threadgroup_read, threadgroup_written;
};

const Rival kSteel[] = {
    {"fp32", DType::kFloat32, Causal::kNone, 16384, 4096, 4096, 272, 1114112, 66560, 4718592,
     1114112},
    {"bf16", DType::kBFloat16, Causal::kNone, 16384, 4096, 4096, 272, 557056, 33792, 2359296,
     557056},
    {"bf16 causal", DType::kBFloat16, Causal::kUpperLeft, 9216, 2304, 2304, 160, 327680, 33792,
     1327104, 327680},
};

void print_heading() {
  std::cout << std::setw(42) << "matrix" << std::setw(9) << "exp" << std::setw(8) << "shuffle"
            << std::setw(8) << "sg bar" << std::setw(8) << "tg bar" << std::setw(10) << "dev read"
            << std::setw(10) << "dev write" << std::setw(10) << "tg read" << std::setw(10)
            << "tg write\n";
}

/// Both forms of ours. Staged, no column may be higher. Direct (Apple9 on), K and V come from
/// device memory once for 8 queries, not once for 32, because no threadgroup memory is used: device
/// reads are higher, and all reads together lower.
TEST(Counts, NoHigherThanSteel) {
  print_heading();
  for (const Rival& steel : kSteel) {
    SCOPED_TRACE(steel.name);
    const sim::Counters staged = count(problem(steel.dtype, steel.causal), kStagedDevice).forward;
    const sim::Counters direct = count(problem(steel.dtype, steel.causal), kDirectDevice).forward;
    print(std::string("ours staged, ") + steel.name, staged);
    print(std::string("ours direct, ") + steel.name, direct);
    for (const sim::Counters& ours : {staged, direct}) {
      EXPECT_LE(ours.matrix_multiplies, steel.multiplies);
      EXPECT_LE(ours.shuffles, steel.shuffles);
      EXPECT_LE(ours.simdgroup_barriers, steel.simdgroup_barriers);
      EXPECT_LE(ours.threadgroup_barriers, steel.threadgroup_barriers);
      EXPECT_LE(ours.device_bytes_written, steel.device_written);
      EXPECT_LE(ours.threadgroup_bytes_read, steel.threadgroup_read);
      EXPECT_LE(ours.threadgroup_bytes_written, steel.threadgroup_written);
    }
    EXPECT_LE(staged.device_bytes_read, steel.device_read);
    EXPECT_LE(direct.device_bytes_read + direct.threadgroup_bytes_read,
              steel.device_read + steel.threadgroup_read);
  }
}

TEST(Counts, CausalIsNearHalfAndBackwardBelowThreePointSix) {
  print_heading();
  for (std::int64_t dim : {64, 128})
    for (const DeviceInfo& device : {kStagedDevice, kDirectDevice}) {
      SCOPED_TRACE(device.name + " D" + std::to_string(dim));
      const Counted dense = count(problem(DType::kFloat32, Causal::kNone, dim), device);
      const Counted causal = count(problem(DType::kFloat32, Causal::kUpperLeft, dim), device);
      const std::string name = device.name + " D" + std::to_string(dim);
      print(name + " forward", dense.forward);
      print(name + " backward", dense.backward);
      print(name + " forward causal", causal.forward);
      print(name + " backward causal", causal.backward);
      const auto ratio = [](const sim::Counters& a, const sim::Counters& b) {
        return static_cast<double>(a.matrix_multiplies) / static_cast<double>(b.matrix_multiplies);
      };
      EXPECT_LT(ratio(causal.forward, dense.forward), 0.57);
      EXPECT_LT(ratio(causal.backward, dense.backward), 0.57);
      EXPECT_LE(ratio(dense.backward, dense.forward), 3.6);
      EXPECT_LE(ratio(causal.backward, causal.forward), 3.6);
    }
}

}  // namespace
}  // namespace sdpa::metal
