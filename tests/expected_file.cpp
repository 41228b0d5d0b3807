// SPDX-License-Identifier: MIT
//
// The file in words of 64 bits: how many cases there are; each one's fingerprint and where its
// results begin; the results, seven lists of doubles with their lengths in front.
#include "tests/expected_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <fstream>
#include <stdexcept>
#include <vector>

#include "sdpa/threads.h"

namespace sdpa::cases {
namespace {

using Words = std::vector<std::uint64_t>;

constexpr std::array kLists{&Expected::out,       &Expected::lse,        &Expected::grad_query,
                            &Expected::grad_key,  &Expected::grad_value, &Expected::grad_mask,
                            &Expected::grad_sinks};
constexpr std::array kInputs{&CaseData::query,   &CaseData::key,   &CaseData::value,
                             &CaseData::mask,    &CaseData::sinks, &CaseData::grad_out,
                             &CaseData::grad_lse};

/// Of the case's name and every input.
std::uint64_t fingerprint(const CaseData& data) {
  std::uint64_t hash = 0;
  const auto mix = [&](std::uint64_t word) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  };
  for (const char letter : data.spec.name) mix(static_cast<unsigned char>(letter));
  for (const auto input : kInputs) {
    if (!(data.*input).view().is_present()) continue;
    for (const double value : (data.*input).values()) mix(std::bit_cast<std::uint64_t>(value));
  }
  return hash;
}

Words to_words(const Expected& expected) {
  Words words;
  for (const auto list : kLists) {
    words.push_back((expected.*list).size());
    for (const double value : expected.*list) words.push_back(std::bit_cast<std::uint64_t>(value));
  }
  return words;
}

Expected from_words(const std::uint64_t* words) {
  Expected expected;
  for (const auto list : kLists) {
    const std::uint64_t size = *words++;
    (expected.*list).resize(size);
    for (double& value : expected.*list) value = std::bit_cast<double>(*words++);
  }
  return expected;
}

void write(std::ofstream& file, const Words& words) {
  file.write(reinterpret_cast<const char*>(words.data()),
             static_cast<std::streamsize>(words.size() * sizeof words[0]));
}

std::vector<Case> conformance_cases_with_elements() {
  std::vector<Case> list = suite("conformance");
  std::erase_if(list, has_empty_extent);
  return list;
}

}  // namespace

void write_expected_file(const std::string& path, std::uint64_t seed) {
  const std::vector<Case> cases = conformance_cases_with_elements();
  Words index(1 + 2 * cases.size());
  std::vector<Words> results(cases.size());
  parallel_for(static_cast<std::int64_t>(cases.size()), [&](std::int64_t task, int) {
    const auto n = static_cast<std::size_t>(task);
    const CaseData data(cases[n], seed);
    index[1 + 2 * n] = fingerprint(data);
    results[n] = to_words(expected(data));
  });
  index[0] = cases.size();
  std::uint64_t place = index.size();
  for (std::size_t n = 0; n < cases.size(); ++n) {
    index[2 + 2 * n] = place;
    place += results[n].size();
  }
  std::ofstream file(path, std::ios::binary);
  write(file, index);
  for (const Words& words : results) write(file, words);
  if (!file.flush()) throw std::runtime_error("The file " + path + " could not be written.");
}

ExpectedFile::ExpectedFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  struct stat status{};
  if (descriptor < 0 || ::fstat(descriptor, &status) != 0)
    throw std::runtime_error("The file " + path + " of expected results cannot be read.");
  const auto bytes = static_cast<std::size_t>(status.st_size);
  void* mapped = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  ::close(descriptor);
  if (mapped == MAP_FAILED)
    throw std::runtime_error("The file " + path + " of expected results cannot be mapped.");
  words_ = static_cast<const std::uint64_t*>(mapped);
  count_ = bytes / sizeof *words_;
  for (std::uint64_t n = 0; n < words_[0]; ++n) places_[words_[1 + 2 * n]] = words_[2 + 2 * n];
}

ExpectedFile::~ExpectedFile() {
  ::munmap(const_cast<std::uint64_t*>(words_), count_ * sizeof *words_);
}

std::optional<Expected> ExpectedFile::find(const CaseData& data) const {
  const auto place = places_.find(fingerprint(data));
  if (place == places_.end()) return std::nullopt;
  return from_words(words_ + place->second);
}

}  // namespace sdpa::cases
