// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "tests/case_data.h"

// The oracle's results in a file, for a program that runs where double precision is slow: under an
// emulator of another processor.

namespace sdpa::cases {

/// Writes what the oracle expects of every case of the conformance suite whose extents are not
/// empty, with the given seed of the inputs. Throws std::runtime_error where it cannot.
void write_expected_file(const std::string& path, std::uint64_t seed);

/// Reads such a file. Results are found by the inputs, all their bits: those of other inputs, or of
/// a case that has changed, are not there.
class ExpectedFile {
 public:
  /// Throws std::runtime_error where there is no such file.
  explicit ExpectedFile(const std::string& path);
  ExpectedFile(const ExpectedFile&) = delete;
  ExpectedFile& operator=(const ExpectedFile&) = delete;
  ~ExpectedFile();

  std::optional<Expected> find(const CaseData& data) const;

 private:
  const std::uint64_t* words_ = nullptr;
  std::size_t count_ = 0;
  std::map<std::uint64_t, std::uint64_t> places_;  ///< by fingerprint, in words
};

}  // namespace sdpa::cases
