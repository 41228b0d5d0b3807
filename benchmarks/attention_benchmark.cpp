// SPDX-License-Identifier: MIT
//
// The CPU kernels alone, without Python: time, rate on visible pairs, and the share of the peak
// that this run measured (multiply-adds on registers, or reads of memory where one query is
// decoded). The cases are those of the suite "speed".
//
//   attention_benchmark [--benchmark_filter=forward/fp32] [--threads=N]
//
// MPS_SDPA_ISA picks the instruction set.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <iostream>
#include <string_view>

#include "sdpa/cpu/backend.h"
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/cpu/peak.h"
#include "sdpa/threads.h"
#include "tests/case_data.h"

namespace sdpa::benchmarks {
namespace {

using cases::Case;

double bytes_read(const Problem& problem) {
  return static_cast<double>(problem.batch * problem.kv_heads * problem.kv_len *
                             (problem.qk_dim + problem.v_dim) * size_bytes(problem.dtype));
}

void report(benchmark::State& state, const Problem& problem, Pass pass, const cpu::Peaks& peaks) {
  using benchmark::Counter;
  const bool is_decode = problem.q_len == 1;
  const double amount = is_decode ? bytes_read(problem) : flops(problem, pass);
  const bool has_pairs = problem.dtype == DType::kBFloat16 && peaks.bfloat16 > 0;
  const double peak = is_decode ? peaks.bandwidth : has_pairs ? peaks.bfloat16 : peaks.float32;
  const auto rate = Counter::kIsIterationInvariantRate;
  state.counters[is_decode ? "GB/s" : "GFLOP/s"] = Counter(amount * 1e-9, rate);
  state.counters["% of peak"] = Counter(100 * amount / peak, rate);
}

void run(benchmark::State& state, const Case& spec, Pass pass, const cpu::Peaks& peaks) {
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
}

void register_case(const Case& spec, Pass pass, const cpu::Peaks& peaks) {
  const std::string name = (pass == Pass::kForward ? "forward/" : "backward/") + spec.name;
  benchmark::RegisterBenchmark(
      name.c_str(), [spec, pass, peaks](benchmark::State& state) { run(state, spec, pass, peaks); })
      ->MeasureProcessCPUTime()
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

void register_all(const cpu::Peaks& peaks) {
  for (const Pass pass : {Pass::kForward, Pass::kBackward})
    for (const Case& spec : cases::suite("speed"))
      if (pass == Pass::kForward || spec.q_len > 1) register_case(spec, pass, peaks);
}

/// Takes --threads=N out of the arguments.
void read_thread_count(int& count, char** arguments) {
  constexpr std::string_view kFlag = "--threads=";
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    const std::string_view argument = arguments[i];
    if (argument.starts_with(kFlag))
      set_thread_count(std::atoi(argument.data() + kFlag.size()));
    else
      arguments[kept++] = arguments[i];
  }
  count = kept;
}

cpu::Peaks measure_peaks() {
  const cpu::Peaks peaks = cpu::measure_peaks();
  std::cout << "instruction set " << cpu::instruction_set().name << ", " << thread_count()
            << " threads; peaks: float32 " << peaks.float32 * 1e-9 << " GFLOP/s, bfloat16 "
            << peaks.bfloat16 * 1e-9 << " GFLOP/s, reading " << peaks.bandwidth * 1e-9 << " GB/s\n";
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
