// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string_view>
#include <type_traits>
#include <utility>

#include "sdpa/metal/runtime.h"

/// The Objective-C type encoding of a C++ function type, made at compile time.
///
/// Each message carries its encoding as a token. So what C++ sends, what messages.h declares,
/// what a fake runtime implements and what a Mac itself reports can all be compared as text.
///
///   v void   B bool   q Q 64-bit integers   i I 32-bit enumerations   f d floating point
///   @ object   @? block   : selector   * char*   ^T pointer to T   r const   {?=QQQ} a structure
namespace sdpa::apple {

using NSUInteger = unsigned long;
using NSInteger = long;

/// A size in threads or threadgroups.
struct MTLSize {
  NSUInteger width;
  NSUInteger height;
  NSUInteger depth;
};

struct NSOperatingSystemVersion {
  NSInteger major;
  NSInteger minor;
  NSInteger patch;
};

// How a C++ value travels: a handle as the object it holds, an enumeration as its integer. The
// integer is written into the function type, so that caller and callee agree exactly.

template <class T>
struct Lowered {
  using type = T;

  static T of(const T& value) { return value; }
};

template <>
struct Lowered<void> {
  using type = void;
};

template <std::size_t size>
struct Lowered<char[size]> {  // a literal
  using type = const char*;

  static const char* of(const char (&text)[size]) { return text; }
};

template <class T>
using Wire = typename Lowered<T>::type;

template <class T>
struct Plain {
  using type = T;
};

template <class T>
  requires std::is_enum_v<T>
struct Plain<T> {
  using type = std::underlying_type_t<T>;
};

template <class T>
using Carried = typename Plain<Wire<T>>::type;

template <class T>
Carried<T> carry(const T& value) {
  return static_cast<Carried<T>>(Lowered<T>::of(value));
}

/// A text of bounded length that can be built at compile time.
struct EncodingText {
  char text[128] = {};
  std::size_t size = 0;

  constexpr void add(std::string_view more) {
    for (const char c : more) text[size++] = c;
  }

  constexpr std::string_view view() const { return {text, size}; }
};

template <class>
inline constexpr bool kUnsendable = false;

template <class T>
constexpr void encode(EncodingText& out);

template <class T>
constexpr void encode_pointer(EncodingText& out) {
  if constexpr (std::is_const_v<T>) out.add("r");
  if constexpr (std::is_same_v<std::remove_const_t<T>, char>) {
    out.add("*");
  } else {
    out.add("^");
    encode<std::remove_const_t<T>>(out);
  }
}

template <class T>
constexpr std::string_view integer_code() {
  constexpr bool is_signed = std::is_signed_v<typename Plain<T>::type>;
  if constexpr (sizeof(T) == 8) return is_signed ? "q" : "Q";
  return is_signed ? "i" : "I";
}

/// 32-bit integers are only sent as enumerations: an int where Apple has NSUInteger is the
/// commonest mistake, and the upper half of the register would then hold anything.
template <class T>
constexpr void encode(EncodingText& out) {
  if constexpr (std::is_void_v<T>) {
    out.add("v");
  } else if constexpr (std::is_same_v<T, bool>) {
    out.add("B");
  } else if constexpr (std::is_same_v<T, float>) {
    out.add("f");
  } else if constexpr (std::is_same_v<T, double>) {
    out.add("d");
  } else if constexpr (std::is_same_v<T, Id>) {
    out.add("@");
  } else if constexpr (std::is_same_v<T, Block>) {
    out.add("@?");
  } else if constexpr (std::is_same_v<T, Selector>) {
    out.add(":");
  } else if constexpr (std::is_same_v<T, MTLSize>) {
    out.add("{?=QQQ}");
  } else if constexpr (std::is_same_v<T, NSOperatingSystemVersion>) {
    out.add("{?=qqq}");
  } else if constexpr ((std::is_integral_v<T> && sizeof(T) == 8) ||
                       (std::is_enum_v<T> && sizeof(T) >= 4)) {
    out.add(integer_code<T>());
  } else if constexpr (std::is_pointer_v<T> && !std::is_function_v<std::remove_pointer_t<T>>) {
    encode_pointer<std::remove_pointer_t<T>>(out);
  } else {
    static_assert(kUnsendable<T>,
                  "cannot be sent: use NSUInteger or NSInteger (0ul, 0l) for small integers, an "
                  "enumeration of 32 bits where Apple has one, a Handle or Ref for objects");
  }
}

template <class... T>
constexpr EncodingText encode_all() {
  EncodingText out;
  (encode<T>(out), ...);
  return out;
}

/// The encoding of a C function Result(Arguments...).
template <class Result, class... Arguments>
inline constexpr EncodingText kFunctionEncoding = encode_all<Wire<Result>, Wire<Arguments>...>();

/// The encoding of a method Result(Id, Selector, Arguments...).
template <class Result, class... Arguments>
inline constexpr EncodingText kMethodEncoding =
    kFunctionEncoding<Result, Id, Selector, Arguments...>;

/// Whether a message sent with one encoding suits a method declared with the other. The declared
/// one may hold stack offsets, as Apple's do, and may promise const where the sender does not.
constexpr bool encoding_matches(std::string_view sent, std::string_view declared) {
  std::size_t at = 0;
  int depth = 0;  // digits inside {}, [] and () are no offsets
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  for (const char c : declared) {
    if (depth == 0 && is_digit(c)) continue;
    if (c == 'r' && (at == sent.size() || sent[at] != 'r')) continue;
    if (at == sent.size() || sent[at] != c) return false;
    depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
    ++at;
  }
  return at == sent.size();
}

}  // namespace sdpa::apple
