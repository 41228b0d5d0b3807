// SPDX-License-Identifier: MIT
#include "sdpa/metal/objc.h"

namespace sdpa::apple {

// Two threads may look the same name up at once: both store the same selector.
void SelectorSlot::look_up(Runtime& runtime) {
  const unsigned now = runtime_generation();
  selector_.store(runtime.selector(name_), std::memory_order_relaxed);
  generation_.store(now, std::memory_order_release);
}

void throw_sent_to_nil(std::string_view owner, std::string_view selector) {
  throw Error(std::string(selector) + " was sent to nil instead of an object of " +
              std::string(owner));
}

void throw_no_function(std::string_view name) {
  throw Error("This system has no function " + std::string(name) + ".");
}

Id require_class(const char* name) {
  const Id found = runtime().find_class(name);
  if (!found) throw Error(std::string("This system has no class ") + name + ".");
  return found;
}

}  // namespace sdpa::apple
