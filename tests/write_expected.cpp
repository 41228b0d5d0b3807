// SPDX-License-Identifier: MIT
//
// write_expected FILE: the oracle's results for programs that only read them.
#include <exception>
#include <iostream>

#include "tests/conformance.h"
#include "tests/expected_file.h"

int main(int count, char** arguments) try {
  if (count != 2) {
    std::cerr << "write_expected: takes one argument, the file to write.\n";
    return 2;
  }
  sdpa::cases::write_expected_file(arguments[1], sdpa::cases::kInputSeed);
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
