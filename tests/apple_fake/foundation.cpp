// SPDX-License-Identifier: MIT
#include "tests/apple_fake/foundation.h"

#include <tuple>

namespace sdpa::apple_fake {

using apple::Id;
using apple::NSInteger;
using apple::NSUInteger;

namespace {

Made make_string(ClassInfo&, const char* text) {
  if (!text) current_runtime().fail("null given to " + current_message());
  return make<String>("NSString", text);
}

Made make_integer(ClassInfo&, NSInteger value) {
  return make<Number>("NSNumber", static_cast<double>(value));
}

Made make_double(ClassInfo&, double value) { return make<Number>("NSNumber", value); }

/// Collections take no nil, and what they take has to be alive.
Hold element(Id object) {
  if (!object) current_runtime().fail("nil given to " + current_message());
  current_runtime().require_alive(object, "element of " + current_message());
  return Hold(object);
}

Made make_array(ClassInfo&, const Id* objects, NSUInteger count) {
  auto array = std::make_unique<Array>();
  for (NSUInteger i = 0; i < count; ++i) array->objects.push_back(element(objects[i]));
  return {current_runtime().create("NSArray", std::move(array))};
}

Made make_dictionary(ClassInfo&, const Id* values, const Id* keys, NSUInteger count) {
  auto dictionary = std::make_unique<Dictionary>();
  for (NSUInteger i = 0; i < count; ++i) {
    dictionary->entries.emplace_back(element(keys[i]), element(values[i]));
  }
  return {current_runtime().create("NSDictionary", std::move(dictionary))};
}

struct ProcessInfo : Body {
  bool at_least(apple::NSOperatingSystemVersion wanted) {
    const System& system = current_runtime().system();
    return std::tuple(system.macos_major, system.macos_minor, 0) >=
           std::tuple(wanted.major, wanted.minor, wanted.patch);
  }
};

Made process_info(ClassInfo&) { return make<ProcessInfo>("NSProcessInfo"); }

bool equal(Id a, Id b) {
  const auto* x = dynamic_cast<String*>(a->body.get());
  const auto* y = dynamic_cast<String*>(b->body.get());
  return a == b || (x && y && x->text == y->text);
}

}  // namespace

Id Array::at(unsigned long index) {
  if (index >= objects.size()) {
    current_runtime().fail(current_message() + ": index " + std::to_string(index) + " of " +
                           std::to_string(objects.size()));
  }
  return objects[index].id();
}

Id Dictionary::find(Id key) {
  for (const auto& [known, value] : entries) {
    if (equal(known.id(), key)) return value.id();
  }
  return nullptr;
}

void give_error(Id* slot, const std::string& text, NSInteger code) {
  if (!slot) return;
  FakeRuntime& runtime = current_runtime();
  *slot = runtime.autorelease(make<NSErrorBody>("NSError", text, code).object);
}

void install_foundation(FakeRuntime& runtime) {
  define<"NSString">(runtime)
      .on<"stringWithUTF8String:", &make_string>()
      .on<"UTF8String", &String::utf8>();
  define<"NSNumber">(runtime)
      .on<"numberWithInteger:", &make_integer>()
      .on<"numberWithDouble:", &make_double>();
  define<"NSArray">(runtime)
      .on<"arrayWithObjects:count:", &make_array>()
      .on<"count", &Array::count>()
      .on<"objectAtIndex:", &Array::at>();
  define<"NSDictionary">(runtime)
      .on<"dictionaryWithObjects:forKeys:count:", &make_dictionary>()
      .on<"objectForKey:", &Dictionary::find>();
  define<"NSError">(runtime)
      .on<"localizedDescription", &NSErrorBody::description>()
      .on<"code", &NSErrorBody::code>();
  define<"NSProcessInfo">(runtime)
      .on<"processInfo", &process_info>()
      .on<"isOperatingSystemAtLeastVersion:", &ProcessInfo::at_least>();
}

}  // namespace sdpa::apple_fake
