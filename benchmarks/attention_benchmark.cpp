// SPDX-License-Identifier: MIT
//
// The CPU kernels alone, without Python: time, GFLOP/s on visible pairs, and the share of the peak
// that this run measured (multiply-adds on registers, or reads of memory for decoding).
//
//   attention_benchmark --benchmark_filter=forward/fp32 [--threads=N]
//
// MPS_SDPA_ISA picks the instruction set.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>

#include "benchmarks/peak.h"
#include "sdpa/cpu/backend.h"
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/threads.h"
#include "tests/case_data.h"

namespace sdpa::benchmarks {
namespace {

using cases::Case;

Case shape(std::string name, DType dtype, std::int64_t q_heads, std::int64_t kv_heads,
           std::int64_t length, std::int64_t dim) {
  return {.name = std::move(name),
          .dtype = dtype,
          .q_heads = q_heads,
          .kv_heads = kv_heads,
          .q_len = length,
          .kv_len = length,
          .qk_dim = dim,
          .v_dim = dim};
}

template <typename Change>
Case with(Case spec, const char* name, const Change& change) {
  spec.name = name;
  change(spec);
  return spec;
}

std::vector<Case> float32_cases() {
  const Case base = shape("fp32 D64 L2048", DType::kFloat32, 8, 8, 2048, 64);
  const auto mask = [](cases::MaskShape shape, DType dtype, cases::MaskPattern pattern) {
    return [=](Case& c) { c.mask = {.shape = shape, .dtype = dtype, .pattern = pattern}; };
  };
  using cases::MaskPattern;
  using cases::MaskShape;
  return {
      base,
      shape("fp32 D128 L2048", DType::kFloat32, 8, 8, 2048, 128),
      with(base, "fp32 D64 L2048 causal", [](Case& c) { c.causal = Causal::kUpperLeft; }),
      with(base, "fp32 D64 L2048 bool mask",
           mask(MaskShape::kMatrix, DType::kBool, MaskPattern::kRandom)),
      with(base, "fp32 D64 L2048 key padding",
           mask(MaskShape::kKeys, DType::kBool, MaskPattern::kTail)),
      with(base, "fp32 D64 L2048 additive mask",
           mask(MaskShape::kPerHead, DType::kFloat32, MaskPattern::kSoft)),
      with(base, "fp32 D64 L2048 dropout", [](Case& c) { c.dropout = 0.1; }),
      with(base, "fp32 D64 L2048 softcap", [](Case& c) { c.softcap = 30; }),
      with(base, "fp32 D64 L2048 sinks", [](Case& c) { c.sinks = true; }),
      with(base, "fp32 D64 L4096 window 256",
           [](Case& c) {
             c.q_len = c.kv_len = 4096;
             c.window = {.left = 255, .right = 0};
           }),
      with(shape("", DType::kFloat32, 32, 8, 2048, 128), "fp32 H32/8 D128 L2048 causal",
           [](Case& c) { c.causal = Causal::kUpperLeft; }),
      shape("fp32 H1 D64 L4096", DType::kFloat32, 1, 1, 4096, 64),
      with(shape("", DType::kFloat32, 12, 12, 128, 64), "fp32 B32 H12 L128 D64",
           [](Case& c) { c.batch = 32; }),
      with(shape("", DType::kFloat32, 4, 4, 49, 32), "fp32 B256 H4 L49 D32",
           [](Case& c) { c.batch = 256; }),
  };
}

std::vector<Case> half_cases() {
  std::vector<Case> list;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const char* prefix = dtype == DType::kBFloat16 ? "bf16" : "fp16";
    list.push_back(shape(std::string(prefix) + " D64 L2048", dtype, 8, 8, 2048, 64));
    list.push_back(shape(std::string(prefix) + " D128 L2048 causal", dtype, 8, 8, 2048, 128));
    list.back().causal = Causal::kUpperLeft;
  }
  return list;
}

std::vector<Case> decode_cases() {
  std::vector<Case> list;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    list.push_back(shape(std::string("decode ") + std::string(name(dtype)) + " H32/8 D128 8k",
                         dtype, 32, 8, 8192, 128));
  list.push_back(shape("decode float32 H8 D64 16k", DType::kFloat32, 8, 8, 16384, 64));
  list.push_back(shape("decode float32 H1 D128 32k", DType::kFloat32, 1, 1, 32768, 128));
  for (Case& spec : list) spec.q_len = 1;
  return list;
}

Peak peak_of_set() {
  const std::map<std::string_view, Peak (*)()> peaks = {{"avx512_bf16", avx512_bf16_peak},
                                                        {"avx512", avx512_peak},
                                                        {"avx2", avx2_peak},
                                                        {"portable", portable_peak}};
  return peaks.at(cpu::instruction_set().name)();
}

struct Peaks {
  double float32 = 0, bfloat16 = 0, bandwidth = 0;
};

double bytes_read(const Problem& problem) {
  return static_cast<double>(problem.batch * problem.kv_heads * problem.kv_len *
                             (problem.qk_dim + problem.v_dim) * size_bytes(problem.dtype));
}

void report(benchmark::State& state, const Problem& problem, Pass pass, const Peaks& peaks) {
  using benchmark::Counter;
  const bool is_decode = problem.q_len == 1;
  const double amount = (is_decode ? bytes_read(problem) : flops(problem, pass)) * 1e-9;
  const bool has_pairs = problem.dtype == DType::kBFloat16 && peaks.bfloat16 > 0;
  const double peak = is_decode ? peaks.bandwidth : has_pairs ? peaks.bfloat16 : peaks.float32;
  const auto rate = Counter::kIsIterationInvariantRate;
  state.counters[is_decode ? "GB/s" : "GFLOP/s"] = Counter(amount, rate);
  state.counters["% of peak"] = Counter(100 * amount / peak, rate);
}

void register_case(const Case& spec, Pass pass, const Peaks& peaks) {
  const std::string name = (pass == Pass::kForward ? "forward/" : "backward/") + spec.name;
  benchmark::RegisterBenchmark(name.c_str(),
                               [spec, pass, peaks](benchmark::State& state) {
                                 const cases::CaseData data(spec, 1);
                                 const Backend& backend = cpu::backend();
                                 backend.forward(data.problem, data.forward_tensors());
                                 for (auto _ : state) {
                                   if (pass == Pass::kForward)
                                     backend.forward(data.problem, data.forward_tensors());
                                   else
                                     backend.backward(data.problem, data.backward_tensors());
                                 }
                                 report(state, data.problem, pass, peaks);
                               })
      ->MeasureProcessCPUTime()
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

void register_all(const Peaks& peaks) {
  for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
    for (const Case& spec : float32_cases()) register_case(spec, pass, peaks);
    for (const Case& spec : half_cases()) register_case(spec, pass, peaks);
  }
  for (const Case& spec : decode_cases()) register_case(spec, Pass::kForward, peaks);
}

/// Takes --threads=N out of the arguments.
void read_thread_count(int& count, char** arguments) {
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    const std::string_view argument = arguments[i];
    constexpr std::string_view kFlag = "--threads=";
    if (argument.starts_with(kFlag))
      set_thread_count(std::atoi(argument.data() + kFlag.size()));
    else
      arguments[kept++] = arguments[i];
  }
  count = kept;
}

Peaks measure_peaks() {
  const Peak peak = peak_of_set();
  const Peaks peaks{.float32 = gflops(peak.float32),
                    .bfloat16 = peak.bfloat16 != nullptr ? gflops(peak.bfloat16) : 0,
                    .bandwidth = read_bandwidth()};
  std::cout << "instruction set " << cpu::instruction_set().name << ", " << thread_count()
            << " threads, peaks: float32 " << peaks.float32 << " GFLOP/s, bfloat16 "
            << peaks.bfloat16 << " GFLOP/s, reading " << peaks.bandwidth << " GB/s\n";
  return peaks;
}

}  // namespace
}  // namespace sdpa::benchmarks

int main(int count, char** arguments) {
  sdpa::benchmarks::read_thread_count(count, arguments);
  benchmark::Initialize(&count, arguments);
  if (benchmark::ReportUnrecognizedArguments(count, arguments)) return 1;
  sdpa::benchmarks::register_all(sdpa::benchmarks::measure_peaks());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
