// SPDX-License-Identifier: MIT
// Prints every declared message and function, for check_messages.py.
#include <iostream>

#include "sdpa/metal/messages.h"

int main() {
  for (const auto& message : sdpa::apple::kMessages) {
    std::cout << static_cast<char>(message.kind) << ' ' << message.owner << ' ' << message.selector
              << ' ' << message.encoding << '\n';
  }
}
