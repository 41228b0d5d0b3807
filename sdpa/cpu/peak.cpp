// SPDX-License-Identifier: MIT
#include "sdpa/cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "sdpa/cpu/instruction_set.h"
#include "sdpa/threads.h"

namespace sdpa::cpu {
namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The best of several rounds of `work`, which returns how much it did.
template <typename Work>
double best_rate(int rounds, const Work& work) {
  double best = 0;
  for (int round = 0; round < rounds; ++round) {
    const double start = seconds();
    const double amount = work();
    best = std::max(best, amount / (seconds() - start));
  }
  return best;
}

double flops_per_second(double (*spin)(std::int64_t rounds)) {
  constexpr std::int64_t kRounds = 200'000;  // 1 to 3 ms, far above the start of the threads
  const int threads = thread_count();
  std::vector<double> amounts(static_cast<std::size_t>(threads));
  return best_rate(16, [&] {
    parallel_for(threads, [&](std::int64_t task, int) {
      amounts[static_cast<std::size_t>(task)] = spin(kRounds);
    });
    double sum = 0;
    for (const double amount : amounts) sum += amount;
    return sum;
  });
}

double bytes_per_second() {
  constexpr std::size_t kBytes = std::size_t{1} << 29;  // caches hold a fraction of it
  constexpr std::size_t kWords = kBytes / sizeof(std::uint64_t);
  constexpr std::size_t kTasks = 256;
  const std::vector<std::uint64_t> memory(kWords, 1);
  return best_rate(5, [&] {
    parallel_for(kTasks, [&](std::int64_t task, int) {
      const std::uint64_t* from = memory.data() + kWords / kTasks * static_cast<std::size_t>(task);
      std::uint64_t sums[16] = {};
      for (std::size_t n = 0; n < kWords / kTasks; n += 16)
        for (std::size_t i = 0; i < 16; ++i) sums[i] += from[n + i];
      asm volatile("" : : "m"(sums));
    });
    return static_cast<double>(kBytes);
  });
}

}  // namespace

Peaks measure_peaks() {
  const SpinLoops& spin = instruction_set().kernels.spin;
  return {.float32 = flops_per_second(spin.float32),
          .bfloat16 = spin.bfloat16 == nullptr ? 0 : flops_per_second(spin.bfloat16),
          .bandwidth = bytes_per_second()};
}

}  // namespace sdpa::cpu
