// SPDX-License-Identifier: MIT
#include "benchmarks/peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "sdpa/threads.h"

namespace sdpa::benchmarks {
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

}  // namespace

double gflops(Spin spin) {
  const int threads = thread_count();
  return best_rate(8, [&] {
    std::vector<double> amounts(static_cast<std::size_t>(threads));
    parallel_for(threads, [&](std::int64_t task, int) {
      amounts[static_cast<std::size_t>(task)] = spin(500'000);
    });
    double sum = 0;
    for (const double amount : amounts) sum += amount;
    return sum * 1e-9;
  });
}

double read_bandwidth() {
  constexpr std::size_t kBytes = std::size_t{1} << 30;
  constexpr std::size_t kWords = kBytes / sizeof(std::uint64_t);
  constexpr std::int64_t kTasks = 64;
  std::vector<std::uint64_t> memory(kWords, 1);
  return best_rate(4, [&] {
    parallel_for(kTasks, [&](std::int64_t task, int) {
      const std::uint64_t* from = memory.data() + kWords / kTasks * static_cast<std::size_t>(task);
      std::uint64_t sums[8] = {};
      for (std::size_t n = 0; n < kWords / kTasks; n += 8)
        for (std::size_t i = 0; i < 8; ++i) sums[i] += from[n + i];
      asm volatile("" : : "m"(sums));
    });
    return static_cast<double>(kBytes) * 1e-9;
  });
}

}  // namespace sdpa::benchmarks
