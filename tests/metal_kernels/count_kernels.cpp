// SPDX-License-Identifier: MIT
//
// Counts what attention kernels do, ours and those of MLX and torch, on equal problems, and prints
// a line a kernel for counts_table.py. A kernel whose result is not the oracle's is no rival: then
// the program fails.
//
// usage: count_kernels [LIBRARY...]    compiled kernels of MLX and torch, as far as they exist
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "tests/metal_kernels/simulated_metal.h"
#include "tests/metal_sim/mlx_attention.h"
#include "tests/metal_sim/torch_attention.h"

namespace sdpa::metal {
namespace {

using cases::Case;
using sim::Attention;

const DeviceInfo kStagedDevice{.name = "m1", .family = 7, .cores = 8};
const DeviceInfo kDirectDevice{.name = "m4", .family = 9, .cores = 10};

struct Problem {
  const char* name;
  Case spec;
};

Case tiles(DType dtype, std::int64_t dim, Causal causal = Causal::kNone) {
  return {
      .dtype = dtype, .q_len = 256, .kv_len = 256, .qk_dim = dim, .v_dim = dim, .causal = causal};
}

Case grouped(std::int64_t heads, Case spec) {
  spec.q_heads = heads;
  return spec;
}

Case decode(std::int64_t q_heads, std::int64_t kv_heads, std::int64_t kv_len) {
  return {.dtype = DType::kBFloat16,
          .q_heads = q_heads,
          .kv_heads = kv_heads,
          .q_len = 1,
          .kv_len = kv_len,
          .qk_dim = 128,
          .v_dim = 128};
}

std::vector<Problem> problems() {
  constexpr DType kBFloat16 = DType::kBFloat16;
  constexpr Causal kCausal = Causal::kUpperLeft;
  return {
      {"fp32, 256 queries and keys, D 64", tiles(DType::kFloat32, 64)},
      {"bf16, 256 queries and keys, D 64", tiles(kBFloat16, 64)},
      {"bf16, 256 queries and keys, D 64, causal", tiles(kBFloat16, 64, kCausal)},
      {"bf16, 256 queries and keys, D 128", tiles(kBFloat16, 128)},
      {"bf16, 256 queries and keys, D 128, causal", tiles(kBFloat16, 128, kCausal)},
      {"bf16, 256 queries and keys, D 64, four heads share keys", grouped(4, tiles(kBFloat16, 64))},
      {"bf16, one query of 8 heads, 1024 keys each, D 128", decode(8, 8, 1024)},
      {"bf16, one query of 8 heads, 4096 keys, four heads share them, D 128", decode(8, 2, 4096)}};
}

bool is_decode(const Case& spec) { return spec.q_len == 1; }

// ---- Printing ----

void print(const char* problem, const char* kernel, const sim::Counters& c) {
  constexpr std::uint64_t kShufflesOfReduction = 5;  // halving 32 lanes
  const std::uint64_t counts[] = {c.matrix_multiplies,
                                  c.exponentials,
                                  c.shuffles + kShufflesOfReduction * c.reductions,
                                  c.simdgroup_barriers,
                                  c.threadgroup_barriers,
                                  c.device_bytes_read,
                                  c.device_bytes_written,
                                  c.threadgroup_bytes_read,
                                  c.threadgroup_bytes_written,
                                  c.threadgroup_memory};
  std::printf("%s\t%s", problem, kernel);
  for (std::uint64_t count : counts) std::printf("\t%llu", static_cast<unsigned long long>(count));
  std::printf("\n");
}

bool is_wrong = false;

/// Counts one kernel on one problem, and checks that it is right.
void count(const Problem& problem, const char* kernel,
           const std::function<sim::Result(Attention&)>& run) {
  Attention call(problem.spec);
  call.wants_lse = false;
  const sim::Result result = run(call);
  for (const std::string& failure : call.failures(result, Attention::Lse::kAbsent)) {
    std::fprintf(stderr, "%s: %s\n", kernel, failure.c_str());
    is_wrong = true;
  }
  print(problem.name, kernel, result.counters);
}

// ---- Kernels ----

/// The kernel for all specializations has all the threadgroup memory there is; that of a plan's
/// own kernel is in the plan.
sim::Counters sum(const std::vector<Launched>& launches) {
  sim::Counters total;
  std::int64_t memory = 0;
  for (const Launched& each : launches) {
    total += each.counters;
    memory = std::max(memory, each.dispatch.threadgroup_bytes);
  }
  total.threadgroup_memory = static_cast<std::uint64_t>(memory);
  return total;
}

/// One head of many: it gets the plan of a device that others fill. One query gets what the device
/// would choose.
ForwardPlan plan_of(const Case& spec) {
  return is_decode(spec) ? ForwardPlan::kChosen : ForwardPlan::kTiles;
}

sim::Result run_ours(Attention& call, const DeviceInfo& device) {
  std::vector<Launched> launches;
  const SimulatedMetal backend(device, {}, plan_of(call.data.spec),
                               {.change = {}, .launched = &launches});
  ForwardTensors tensors = call.tensors;
  tensors.lse = {};
  backend.forward(call.problem, tensors);
  return {sum(launches), {}};
}

sim::Counters count_backward(const Case& spec, const DeviceInfo& device) {
  cases::CaseData data(spec, 1);
  std::vector<Launched> launches;
  const SimulatedMetal backend(device, {}, ForwardPlan::kTiles,
                               {.change = {}, .launched = &launches});
  backend.forward(data.problem, data.forward_tensors());
  launches.clear();
  backend.backward(data.problem, data.backward_tensors());
  return sum(launches);
}

void count_ours(const Problem& problem) {
  const auto count_on = [&](const char* kernel, const DeviceInfo& device) {
    count(problem, kernel, [&](Attention& call) { return run_ours(call, device); });
  };
  if (is_decode(problem.spec)) return count_on("ours", kDirectDevice);
  count_on("ours, staged", kStagedDevice);
  count_on("ours, direct", kDirectDevice);
  print(problem.name, "ours, staged, backward", count_backward(problem.spec, kStagedDevice));
  print(problem.name, "ours, direct, backward", count_backward(problem.spec, kDirectDevice));
}

bool has_kernels(const std::string& prefix) {
  for (const std::string& name : sim::kernel_names())
    if (name.starts_with(prefix)) return true;
  return false;
}

/// As MLX chooses: blocks of 16 keys for wide heads; few queries in two passes where heads share
/// 4096 keys or more, split over 64 blocks for four heads.
void count_mlx(const Problem& problem) {
  const Case& spec = problem.spec;
  if (!is_decode(spec))
    return count(problem, "MLX steel_attention", [&](Attention& call) {
      return sim::run_steel(call, {.keys = spec.qk_dim < 128 ? 32 : 16}, 0);
    });
  if (spec.kv_heads == spec.q_heads || spec.kv_len < 4096)
    return count(problem, "MLX sdpa_vector",
                 [](Attention& call) { return sim::run_vector(call, 0); });
  count(problem, "MLX sdpa_vector, two passes",
        [](Attention& call) { return sim::run_split_vector(call, "vector_first_", 64, 0); });
}

/// torch has one and two passes for few queries as well.
void count_torch(const Problem& problem) {
  const Case& spec = problem.spec;
  if (!is_decode(spec))
    return count(problem, "torch prefill_attention", [&](Attention& call) {
      return sim::run_prefill(call, spec.causal == Causal::kNone ? "dense" : "causal", {}, 0);
    });
  if (spec.kv_len <= 1024)
    return count(problem, "torch sdpa_vector",
                 [](Attention& call) { return sim::run_decode(call, "decode_", 0); });
  count(problem, "torch sdpa_vector, two passes",
        [](Attention& call) { return sim::run_split_decode(call, 0); });
}

}  // namespace
}  // namespace sdpa::metal

int main(int count, char** arguments) {
  using namespace sdpa::metal;
  for (int n = 1; n < count; ++n)
    if (dlopen(arguments[n], RTLD_NOW) == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      return 2;
    }
  for (const auto& problem : problems()) {
    count_ours(problem);
    if (has_kernels("steel_")) count_mlx(problem);
    if (has_kernels("prefill_")) count_torch(problem);
  }
  return is_wrong ? 1 : 0;
}
