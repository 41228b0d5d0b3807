// SPDX-License-Identifier: MIT
//
// docs/metal-estimates.md: what roofline.h estimates for our kernels, beside what others published
// of theirs, and on every chip. Fails if the page is out of date.
//
// usage: estimates_page [--write] PAGE
#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>

#include "sdpa/metal/roofline.h"
#include "tests/case_data.h"

namespace sdpa::metal {
namespace {

using cases::Case;

enum class Passes { kForward, kTraining };

/// Milliseconds of our kernels on a chip, by counting.
double estimated_ms(const Case& spec, Passes passes, const Chip& chip) {
  const Problem problem = cases::problem_of(spec, 0);
  const DeviceInfo device = device_of(chip);
  double sum = estimate_ms(problem, plan_forward(problem, dense_forward(problem), device), chip);
  if (passes == Passes::kTraining)
    sum += estimate_ms(problem, plan_backward(problem, dense_backward(problem), device), chip);
  return sum;
}

Case shape(DType dtype, std::int64_t batch, std::int64_t heads, std::int64_t len, std::int64_t dim,
           Causal causal = Causal::kNone) {
  return {.dtype = dtype,
          .batch = batch,
          .q_heads = heads,
          .kv_heads = heads,
          .q_len = len,
          .kv_len = len,
          .qk_dim = dim,
          .v_dim = dim,
          .causal = causal};
}

/// A time that others measured of their own kernels.
struct Published {
  const char* who;
  const char* chip;
  Case spec;
  Passes passes;
  double milliseconds;
};

constexpr DType kFloat16 = DType::kFloat16, kBFloat16 = DType::kBFloat16;
constexpr Causal kCausal = Causal::kUpperLeft;
constexpr const char* kOriginal = "mps-sdpa 0.2 (MPSGraph)";
constexpr const char* kMfa = "metal-flash-attention";

/// metal-flash-attention publishes instructions a second, counting 2 D + 5 a pair forward and
/// 7 D + 10 more backward, where a multiply-add is one.
double ms_of_instructions(double pairs, double instructions, double giga_a_second) {
  return pairs * instructions / giga_a_second * 1e-6;
}

std::vector<Published> published() {
  constexpr double kPairs = 8192.0 * 8192.0;
  const Case mfa64 = shape(DType::kFloat32, 1, 1, 8192, 64);
  const Case mfa128 = shape(DType::kFloat32, 1, 1, 8192, 128);
  const double forward64 = ms_of_instructions(kPairs, 133, 3815);
  std::vector<Published> list = {
      {kMfa, "m1-max", mfa64, Passes::kForward, forward64},
      {kMfa, "m1-max", mfa64, Passes::kTraining,
       forward64 + ms_of_instructions(kPairs, 197, 3640) + ms_of_instructions(kPairs, 261, 3440)},
      {kMfa, "m1-max", mfa128, Passes::kForward, ms_of_instructions(kPairs, 261, 3830)},
      {"mlx-mfa", "m1-max", shape(kFloat16, 2, 8, 8192, 64, kCausal), Passes::kForward, 19.8},
      {"mlx-mfa", "m1-max", shape(kFloat16, 2, 8, 8192, 128, kCausal), Passes::kForward, 44.1},
      {"mlx-mfa", "m1-max", shape(kFloat16, 2, 8, 16384, 128, kCausal), Passes::kForward, 166.8},
      {"MLX steel", "m3-max", shape(kFloat16, 1, 32, 4096, 64), Passes::kForward, 11.7}};

  struct {
    std::int64_t len;
    double forward, training;
  } const original[] = {
      {1024, 0.90, 5.06}, {2048, 3.82, 17.1}, {4096, 11.79, 64.8}, {8192, 44.3, 247}};

  for (const auto& [len, forward, training] : original) {
    list.push_back({kOriginal, "m4", shape(kBFloat16, 1, 8, len, 64), Passes::kForward, forward});
    list.push_back({kOriginal, "m4", shape(kBFloat16, 1, 8, len, 64), Passes::kTraining, training});
  }
  return list;
}

/// What is estimated on every chip.
struct Column {
  const char* name;
  Case spec;
  Passes passes;
};

std::vector<Column> columns() {
  Case decode = shape(kBFloat16, 1, 32, 16384, 128);
  decode.q_len = 1;
  decode.kv_heads = 8;
  return {{"forward", shape(kBFloat16, 1, 8, 4096, 64), Passes::kForward},
          {"forward, causal", shape(kBFloat16, 1, 8, 4096, 64, kCausal), Passes::kForward},
          {"forward and backward", shape(kBFloat16, 1, 8, 4096, 64), Passes::kTraining},
          {"forward, D 128", shape(kBFloat16, 1, 8, 4096, 128), Passes::kForward},
          {"one query", decode, Passes::kForward}};
}

const char* text_of(Passes passes) {
  return passes == Passes::kForward ? "forward" : "forward and backward";
}

void write_published(std::ostream& out) {
  out << "| kernels | chip | problem | pass | published, ms | ours, estimate, ms | published / "
         "estimate |\n|---|---|---|---|---:|---:|---:|\n";
  for (const Published& p : published()) {
    const double ours = estimated_ms(p.spec, p.passes, chip_named(p.chip));
    out << "| " << p.who << " | " << p.chip << " | " << cases::describe(p.spec) << " | "
        << text_of(p.passes) << " | " << p.milliseconds << " | " << ours << " | "
        << p.milliseconds / ours << " |\n";
  }
}

void write_chips(std::ostream& out) {
  out << "| chip | cores | fp32 TFLOP/s | GB/s |";
  for (const Column& column : columns()) out << " " << column.name << ", ms |";
  out << "\n|---|---:|---:|---:|";
  for (std::size_t n = 0; n < columns().size(); ++n) out << "---:|";
  out << "\n";
  for (const Chip& chip : chips()) {
    out << "| " << chip.name << (chip.is_scaled ? " (scaled)" : "") << " | " << chip.cores << " | "
        << chip.teraflops << " | " << chip.gigabytes_per_second << " |";
    for (const Column& column : columns())
      out << " " << estimated_ms(column.spec, column.passes, chip) << " |";
    out << "\n";
  }
}

constexpr const char* kIntroduction = R"(# Metal: estimated times

**Every time of ours on this page is an estimate. Nothing of ours was timed on an Apple device.** An
estimate is what the kernels do, counted, over what a chip can do, published: `sdpa/metal/roofline.cpp`
says which figures and how they are added up, and a test holds its counts against the simulator's.
It is a lower bound: caches, registers that spill and the last wave of threadgroups are left out.
`mps-sdpa explain --backend metal --chip m4 --shape 1,8,4096,4096,64` gives one for any problem.

This page is generated, and a test fails where it is out of date;
`cmake --build --preset dev --target write_estimates` writes it anew.

## Beside what others published

Times that others measured of their own kernels, not checked by us; those of metal-flash-attention
are computed from the instructions a second that it states. *Published / estimate* says how far
measured kernels stay above our lower bound; it promises no speed of ours.

)";

constexpr const char* kChipsHeading = R"(
## On every chip

)";

std::string render() {
  std::ostringstream out;
  out << std::setprecision(3) << kIntroduction;
  write_published(out);
  out << kChipsHeading << "All bf16: ";
  for (const Column& column : columns())
    out << "*" << column.name << "* " << cases::describe(column.spec)
        << (std::strcmp(column.name, "one query") == 0 ? ".\n" : ", ");
  out << "*Scaled* chips have no published peak; theirs is the base chip's by the number of "
         "cores.\n"
         "Our kernels do not use the matrix units of the M5, so they are not in its peak.\n\n";
  write_chips(out);
  return out.str();
}

std::string contents(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace
}  // namespace sdpa::metal

int main(int count, char** arguments) {
  const bool writes = count == 3 && std::strcmp(arguments[1], "--write") == 0;
  const char* page = arguments[count - 1];
  const std::string text = sdpa::metal::render();
  if (writes) return std::ofstream(page) << text ? 0 : 1;
  if (text == sdpa::metal::contents(page)) return 0;
  std::cerr << page << " is out of date: cmake --build --preset dev --target write_estimates\n";
  return 1;
}
