// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace sdpa::apple {

/// How the running system's own methods differ from the messages that this library declares: what
/// only a Mac can tell.
struct MessageReport {
  std::string reason;  ///< why nothing was compared; empty if all was
  std::size_t declared = 0;
  int macos = 0;                         ///< the major version of the system
  std::vector<std::string> differences;  ///< a sentence each
};

MessageReport report_messages();

}  // namespace sdpa::apple
