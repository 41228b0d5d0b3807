// SPDX-License-Identifier: MIT
//
// The whole way of a C++ call on a Mac: the Metal back end stages, compiles, encodes and commits
// on the fake Mac, whose GPU is the simulator. Results against the oracle, and no mistake noted.
#include <gtest/gtest.h>

#include <iostream>

#include "sdpa/metal/backend.h"
#include "tests/apple_fake/mac.h"
#include "tests/apple_fake/simulated_kernels.h"
#include "tests/conformance.h"

namespace sdpa::metal {
namespace {

/// The plans are the same as in metal_kernels_test, which runs every case: some of each kind do.
constexpr std::size_t kEvery = 31;

TEST(MetalOnAFakeMac, IsRight) {
  apple_fake::SimulatedKernels kernels;
  apple_fake::FakeMac mac(kernels);
  auto backend = make_backend(KernelSet::kFlash);
  int count = 0, refused = 0;
  std::size_t n = 0;
  for (const cases::Case& spec : cases::suite("conformance")) {
    if (cases::has_empty_extent(spec) || n++ % kEvery != 0) continue;
    SCOPED_TRACE(spec.name);
    cases::CaseData data(spec, 7);
    const cases::Outcome outcome = cases::check(*backend, data, cases::expected(data));
    ++(outcome.refusals.empty() ? count : refused);
    for (const std::string& sentence : outcome.failures) ADD_FAILURE() << sentence;
  }
  backend.reset();
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
  std::cout << count << " cases in " << kernels.launches << " launches, " << refused
            << " refused\n";
  EXPECT_GT(count, 20);
  EXPECT_GT(kernels.launches, 3 * count);
}

}  // namespace
}  // namespace sdpa::metal
