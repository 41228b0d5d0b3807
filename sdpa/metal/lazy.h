// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <mutex>
#include <optional>
#include <string>

#include "sdpa/metal/runtime.h"

namespace sdpa::metal {

/// An exception of Objective-C unwinds through C++ and says nothing there.
inline constexpr const char* kException = "Apple's frameworks raised an exception of Objective-C.";

/// Runs code that may meet one; what leaves here is a std::exception.
template <class Body>
void guarded(const Body& body) {
  try {
    body();
  } catch (const std::exception&) {
    throw;
  } catch (...) {
    throw apple::Error(kException);
  }
}

/// What is opened once, when it is first asked for, or the sentence that says why it cannot be.
template <class Opened>
class Lazy {
 public:
  Opened* find() {
    std::call_once(once_, [this] { open(); });
    return opened_ ? &*opened_ : nullptr;
  }

  /// For calls that were preceded by a choice: it can be.
  Opened& require() {
    Opened* found = find();
    return found ? *found : throw apple::Error(reason_);
  }

  const std::string& reason() const { return reason_; }

 private:
  void open() {
    try {
      guarded([this] { opened_.emplace(); });
    } catch (const std::exception& error) {
      reason_ = error.what();
    }
  }

  std::once_flag once_;
  std::optional<Opened> opened_;
  std::string reason_;
};

}  // namespace sdpa::metal
