// SPDX-License-Identifier: MIT
//
// Do the tests notice mistakes? Kernels and plans are made wrong in one place at a time, and the
// named cases run until one of them fails: by a wrong value, or by a fault of the simulator. A
// mistake that none notices fails this test. The list and what noticed each is printed.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <set>
#include <utility>

#include "tests/conformance.h"
#include "tests/metal_kernels/simulated_metal.h"
#include "tests/metal_kernels/spec_values.h"

namespace sdpa::metal {
namespace {

/// A mistake: where it is, and part of the name of a case that is known to notice it.
struct Mutant {
  std::string name, file, witness;
};

const Mutant kKernelMutants[] = {
#include "mutant_names.inc"
};

constexpr std::int64_t kLargestCase = 1'200'000;  ///< scores times dimensions: some milliseconds

/// A case and what the oracle expects of it, kept for all mutants. NaN lies where a mask hides keys
/// from everyone.
struct Prepared {
  explicit Prepared(const cases::Case& spec) : data(std::make_unique<cases::CaseData>(spec, 11)) {
    cases::poison_hidden_keys(*data);
    expected = cases::expected(*data);
  }

  std::unique_ptr<cases::CaseData> data;
  cases::Expected expected;
  std::set<std::string> passed;  ///< settings in which the right kernels pass
};

std::int64_t size_of(const cases::Case& s) {
  return s.batch * s.q_heads * s.q_len * s.kv_len * (s.qk_dim + s.v_dim);
}

/// How many features a case has. Rich cases notice most, so they come first.
int richness(const cases::Case& s) {
  return (s.mask.shape != cases::MaskShape::kNone) + (s.mask.dtype != DType::kBool) +
         (s.causal != Causal::kNone) + (s.window.left >= 0) + (s.softcap > 0) + s.sinks +
         (s.dropout > 0) + s.grad_lse + (s.batch > 1) + (s.q_heads != s.kv_heads) +
         (s.qk_dim != s.v_dim) + (s.layout != cases::Layout::kContiguous);
}

std::vector<Prepared> prepare() {
  std::vector<cases::Case> specs;
  for (const cases::Case& spec : cases::suite("conformance")) {
    const bool is_small = !cases::has_empty_extent(spec) && size_of(spec) <= kLargestCase;
    const bool has_huge_strides =
        spec.layout == cases::Layout::kHugeRows || spec.layout == cases::Layout::kHugeHeads;
    if (is_small && !has_huge_strides && spec.dtype == DType::kFloat32 &&
        spec.mask.dtype != DType::kFloat64)
      specs.push_back(spec);
  }
  std::ranges::stable_sort(specs, std::greater(), richness);
  return {specs.begin(), specs.end()};
}

std::vector<Prepared>& prepared() {
  static std::vector<Prepared> list = prepare();
  return list;
}

/// A GPU, a forward plan, and the kernel file that runs in no other setting.
struct Setting {
  const char* name;
  DeviceInfo device;
  ForwardPlan forward_plan;
  const char* own_file = "";
};

const Setting kSettings[] = {
    {"staged", {.name = "m1", .family = 7, .cores = 1}, ForwardPlan::kTiles},
    {"direct", {.cores = 1}, ForwardPlan::kTiles},
    {"split", {.cores = 40}, ForwardPlan::kDecode, "decode.h"},
    {"proto", {}, ForwardPlan::kProto, "proto.h"},
};

bool can_notice(const Setting& setting, const std::string& file) {
  if (file == "decode.h" || file == "proto.h") return file == setting.own_file;
  const bool is_shared =
      file.empty() || file == "tile.h" || file == "sight.h" || file == "forward.h";
  return is_shared || *setting.own_file == 0;
}

/// Why one case fails in one setting; empty if it does not.
std::string failure(Prepared& prepared, const Setting& setting, const Probe& probe) {
  const SimulatedMetal backend(setting.device, {.seed = 5}, setting.forward_plan, probe);
  try {
    const cases::Outcome outcome = cases::check(backend, *prepared.data, prepared.expected);
    return outcome.failures.empty() ? "" : outcome.failures[0];
  } catch (const std::exception& error) {
    return error.what();
  }
}

/// Whether the right kernels pass in this setting, so that a failure tells of the mistake.
bool passes_without(Prepared& each, const Setting& setting) {
  const int mutant = std::exchange(spec_values.mutant, 0);
  if (!each.passed.contains(setting.name)) {
    const std::string why = failure(each, setting, {});
    EXPECT_EQ(why, "") << setting.name << ", " << each.data->spec.name;
    if (why.empty()) each.passed.insert(setting.name);
  }
  spec_values.mutant = mutant;
  return each.passed.contains(setting.name);
}

/// What a case says in the settings that matter; empty if it notices nothing.
std::string notice(Prepared& each, const std::string& file, const Probe& probe) {
  for (const Setting& setting : kSettings) {
    if (!can_notice(setting, file)) continue;
    const std::string why = failure(each, setting, probe);
    if (!why.empty() && passes_without(each, setting))
      return std::string(setting.name) + ", " + each.data->spec.name + ": " + why;
  }
  return {};
}

/// What notices a mistake first, in words; empty if nothing does. Witnesses come first.
std::string catcher(const Mutant& mutant, const Probe& probe) {
  int tried = 0;
  for (bool is_witness : {true, false})
    for (Prepared& each : prepared()) {
      const std::string& name = each.data->spec.name;
      if ((name.find(mutant.witness) != std::string::npos) != is_witness) continue;
      ++tried;
      const std::string by = notice(each, mutant.file, probe);
      if (!by.empty()) return "case " + std::to_string(tried) + ": " + by;
    }
  return {};
}

void expect_noticed(const Mutant& mutant, const Probe& probe = {}) {
  const std::string by = catcher(mutant, probe);
  EXPECT_FALSE(by.empty()) << "nothing notices: " << mutant.name;
  std::cout << mutant.name << "\n    " << (by.empty() ? "NOT NOTICED" : by) << std::endl;
}

TEST(Mutants, OfKernelsAreNoticed) {
  for (std::size_t n = 0; n < std::size(kKernelMutants); ++n) {
    spec_values.mutant = static_cast<int>(n) + 1;
    expect_noticed(kKernelMutants[n]);
  }
  spec_values.mutant = 0;
}

// ---- Mistakes of plans ----

bool runs(const Dispatch& dispatch, const std::string& kernel) {
  return dispatch.kernel.starts_with(kernel + "_float");
}

/// Launches `late` before `early`, which it needs.
void reorder(Plan& plan, const std::string& early, const std::string& late) {
  for (std::size_t n = 1; n < plan.dispatches.size(); ++n)
    if (runs(plan.dispatches[n], late))
      for (std::size_t m = 0; m < n; ++m)
        if (runs(plan.dispatches[m], early))
          return std::swap(plan.dispatches[m], plan.dispatches[n]);
}

struct PlanMutant {
  const char* name;
  void (*change)(Plan&);
  const char* witness = "";
};

const PlanMutant kPlanMutants[] = {
    {"forward before the classification of the mask",
     [](Plan& p) { reorder(p, "classify", "forward"); }},
    {"merge before split keys", [](Plan& p) { reorder(p, "split_keys", "merge"); }},
    {"dQ before delta", [](Plan& p) { reorder(p, "delta_of_rows", "grad_query"); }},
    {"dK and dV before delta", [](Plan& p) { reorder(p, "delta_of_rows", "grad_key_value"); }},
    {"the gradient of the mask before delta",
     [](Plan& p) { reorder(p, "delta_of_rows", "grad_mask"); }},
    {"mask strides of rows and columns swapped",
     [](Plan& p) { std::swap(p.params.mask.row, p.params.mask.column); }},
    {"mask strides of batch and heads swapped",
     [](Plan& p) { std::swap(p.params.mask.batch, p.params.mask.head); }},
    {"mask classes of batch and heads swapped",
     [](Plan& p) { std::swap(p.params.class_batch, p.params.class_head); }, "blocks"},
    {"query strides of heads and rows swapped",
     [](Plan& p) { std::swap(p.params.query.head, p.params.query.row); }},
    {"the value's strides for the key", [](Plan& p) { p.params.key = p.params.value; },
     "D40/24 transposed"},
    {"the output's strides for its gradient", [](Plan& p) { p.params.grad_out = p.params.out; },
     "expanded"},
    {"mask gradient written with strides of batch and heads swapped",
     [](Plan& p) { std::swap(p.params.grad_mask.batch, p.params.grad_mask.head); }},
    {"one threadgroup too few",
     [](Plan& p) { p.dispatches.back().grid.x -= p.dispatches.back().grid.x > 1; }},
    {"one part of the keys too few", [](Plan& p) { p.params.splits -= p.params.splits > 1; },
     "L8x128 D40"},
    {"parts of the keys one tile too short",
     [](Plan& p) { p.params.split_keys -= p.params.split_keys > 32 ? 32 : 0; }, "x1000"},
    {"causality aligned to the upper left always", [](Plan& p) { p.params.diagonal = 0; }},
    {"a window one key too wide", [](Plan& p) { p.params.left += 1; }},
    {"dropout of the next head", [](Plan& p) { p.params.first_head += 1; }},
    {"dropout with the halves of the seed swapped",
     [](Plan& p) { std::swap(p.params.seed_low, p.params.seed_high); }},
    {"half of the scratch memory",
     [](Plan& p) {
       for (Scratch& scratch : p.scratch) scratch.bytes -= scratch.bytes / 2;
     }},
    {"queries and keys of the mask's tiles swapped",
     [](Plan& p) { std::swap(p.params.class_rows, p.params.class_columns); }},
};

TEST(Mutants, OfPlansAreNoticed) {
  for (const PlanMutant& mutant : kPlanMutants)
    expect_noticed({mutant.name, "", mutant.witness},
                   {.change = mutant.change, .launched = nullptr});
}

}  // namespace
}  // namespace sdpa::metal
