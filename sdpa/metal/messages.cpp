// SPDX-License-Identifier: MIT
#include "sdpa/metal/messages.h"

#include "sdpa/metal/encoding.h"

namespace sdpa::apple {

std::string title(const Message& message) {
  std::string text(1, static_cast<char>(message.kind));
  return text.append("[").append(message.owner).append(" ").append(message.selector).append("]");
}

std::vector<Difference> compare_messages(Runtime& runtime, int macos) {
  std::vector<Difference> differences;
  for (const Message& message : kMessages) {
    const std::string owner(message.owner);
    const std::string selector(message.selector);
    std::string system = runtime.system_encoding(message.kind, owner.c_str(), selector.c_str());
    if (system.empty() && message.since > macos) continue;
    if (encoding_matches(message.encoding, system)) continue;
    differences.push_back({&message, std::move(system)});
  }
  return differences;
}

}  // namespace sdpa::apple
