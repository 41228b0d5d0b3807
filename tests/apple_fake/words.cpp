// SPDX-License-Identifier: MIT
#include <string>
#include <string_view>

#include "tests/apple_fake/fake_runtime.h"

namespace sdpa::apple_fake {
namespace {

std::string structure(std::string_view& rest) {
  const auto end = rest.find('}') + 1;
  const std::string_view text = rest.substr(0, end);
  rest.remove_prefix(end);
  return text == "?=QQQ}" ? "MTLSize" : std::string("{").append(text);
}

/// Takes one type off the front of an encoding.
std::string next_word(std::string_view& rest) {
  const char code = rest.front();
  rest.remove_prefix(1);
  switch (code) {
    case 'v':
      return "void";
    case 'B':
      return "bool";
    case 'f':
      return "float";
    case 'd':
      return "double";
    case ':':
      return "selector";
    case '*':
      return "char*";
    case 'q':
      return "NSInteger";
    case 'Q':
      return "NSUInteger";
    case 'i':
      return "32-bit signed";
    case 'I':
      return "32-bit unsigned";
    case 'r':
      return std::string("const ").append(next_word(rest));
    case '^':
      return next_word(rest).append("*");
    case '{':
      return structure(rest);
    case '@':
      break;
    default:
      return std::string("type ") + code;
  }
  if (!rest.starts_with('?')) return "object";
  rest.remove_prefix(1);
  return "block";
}

}  // namespace

std::string in_words(const std::string& encoding) {
  std::string_view rest = encoding;
  std::string words = next_word(rest) + " (";
  if (rest.starts_with("@:")) rest.remove_prefix(2);  // a method's receiver and selector
  for (bool first = true; !rest.empty(); first = false) {
    words += (first ? "" : ", ") + next_word(rest);
  }
  return words + ")";
}

}  // namespace sdpa::apple_fake
