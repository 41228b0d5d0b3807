// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/apple_fake/method.h"

namespace sdpa::apple_fake {

struct String : Body {
  std::string text;

  explicit String(std::string from) : text(std::move(from)) {}

  const char* utf8() { return text.c_str(); }
};

struct Number : Body {
  double value;

  explicit Number(double from) : value(from) {}
};

struct Array : Body {
  std::vector<Hold> objects;

  unsigned long count() { return objects.size(); }

  apple::Id at(unsigned long index);
};

struct Dictionary : Body {
  std::vector<std::pair<Hold, Hold>> entries;  // keys and values

  /// Strings are equal by their text, all else by identity.
  apple::Id find(apple::Id key);
};

struct NSErrorBody : Body {
  std::string text;
  apple::NSInteger number;

  NSErrorBody(std::string what, apple::NSInteger code) : text(std::move(what)), number(code) {}

  Made description() { return make<String>("NSString", text); }

  apple::NSInteger code() { return number; }
};

/// Stores an autoreleased error where the caller wants it, if it wants it.
void give_error(apple::Id* slot, const std::string& text, apple::NSInteger code);

void install_foundation(FakeRuntime& runtime);

}  // namespace sdpa::apple_fake
