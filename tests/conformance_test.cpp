// SPDX-License-Identifier: MIT
//
// Every back end that is available here, with every instruction set in turn, against the oracle on
// every case of the conformance suite.
#include "tests/conformance.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <optional>

#include "sdpa/attention.h"
#include "tests/expected_file.h"

namespace sdpa::cases {
namespace {

/// What is running, for the handler of a fault: an access out of bounds hits a fence.
char running[256];

void say_what_was_running(int signal_number) {
  static_cast<void>(!::write(STDERR_FILENO, running, std::strlen(running)));
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

void note(const Engine& engine, const Case& spec) {
  const std::string text = "crashed: " + engine.label() + ": " + spec.name + "\n";
  std::strncpy(running, text.c_str(), sizeof running - 1);
}

class Conformance : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    std::signal(SIGSEGV, say_what_was_running);
    std::signal(SIGBUS, say_what_was_running);
  }
};

/// The oracle's results: from the file that the variable SDPA_EXPECTED names, where there is one
/// and it has them; else computed here.
class Oracle {
 public:
  Oracle() {
    if (const char* path = std::getenv("SDPA_EXPECTED")) file_.emplace(path);
  }

  Expected of(const CaseData& data) {
    std::optional<Expected> found;
    if (file_) found = file_->find(data);
    if (!found) ++computed_;
    return found ? std::move(*found) : expected(data);
  }

  int computed() const { return computed_; }

 private:
  std::optional<ExpectedFile> file_;
  int computed_ = 0;
};

/// An emulator of another processor keeps a record of every page that is reserved: rows 2^31
/// elements apart would take all memory. Heads as far apart do not.
bool is_too_large_here(const Case& spec) {
  return spec.layout == Layout::kHugeRows && std::getenv("SDPA_EMULATED") != nullptr;
}

/// Refusals by their reason, and how many runs of each engine there were.
struct Tally {
  std::map<std::string, int> refusals, runs;

  void add(const Engine& engine, const Outcome& outcome) {
    ++runs[engine.label()];
    for (const std::string& reason : outcome.refusals) ++refusals[reason];
  }

  ~Tally() {
    for (const auto& [label, count] : runs) std::cout << label << ": " << count << " runs\n";
    for (const auto& [reason, count] : refusals)
      std::cout << "refused " << count << " times: " << reason << "\n";
  }
};

TEST_F(Conformance, EveryEngineOnEveryCase) {
  Tally tally;
  Oracle oracle;
  for (const Case& spec : suite("conformance")) {
    if (has_empty_extent(spec)) continue;
    if (is_too_large_here(spec)) {
      ++tally.refusals["rows 2^31 elements apart are too much for the emulator"];
      continue;
    }
    CaseData data(spec, kInputSeed);
    const Expected expected = oracle.of(data);
    for (const Engine& engine : engines()) {
      const Forced forced(engine);
      note(engine, spec);
      const Outcome outcome = check(*engine.backend, data, expected);
      tally.add(engine, outcome);
      for (const std::string& sentence : outcome.failures)
        ADD_FAILURE() << engine.label() << ": " << spec.name << ": " << sentence;
    }
  }
  EXPECT_FALSE(tally.runs.empty()) << "no engine to run";
  std::cout << oracle.computed() << " results of the oracle computed here\n";
}

/// The tensors of a case as a caller of the door gives them: sinks have rank 1.
template <typename Tensors>
Tensors for_the_door(Tensors tensors, std::int64_t heads) {
  const auto flatten = [&](TensorView& view) {
    if (view.is_present()) view = dense(view.data, view.dtype, {heads});
  };
  flatten(tensors.sinks);
  if constexpr (requires { tensors.grad_sinks; }) flatten(tensors.grad_sinks);
  return tensors;
}

TEST_F(Conformance, ExtentsOfZeroGiveEmptyOrZeroResults) {
  int cases = 0;
  for (const Case& spec : suite("conformance")) {
    if (!has_empty_extent(spec)) continue;
    ++cases;
    SCOPED_TRACE(spec.name);
    CaseData data(spec, kInputSeed);
    const Expected oracle = expected(data);
    const Attributes attributes = cases::attributes(spec, kInputSeed);
    forward(for_the_door(data.forward_tensors(), spec.q_heads), attributes);
    EXPECT_EQ(forward_failures(data, oracle), std::vector<std::string>());
    backward(for_the_door(data.backward_tensors(), spec.q_heads), attributes);
    EXPECT_EQ(backward_failures(data, oracle), std::vector<std::string>());
  }
  EXPECT_GE(cases, 10);
}

}  // namespace
}  // namespace sdpa::cases
