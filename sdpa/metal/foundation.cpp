// SPDX-License-Identifier: MIT
#include "sdpa/metal/foundation.h"

#include <cassert>

namespace sdpa::apple {

Handle<NSString> make_string(const std::string& text) {
  return send<Handle<NSString>>(class_of<NSString>(), "stringWithUTF8String:"_sel, text.c_str());
}

Handle<NSNumber> make_number(NSInteger value) {
  return send<Handle<NSNumber>>(class_of<NSNumber>(), "numberWithInteger:"_sel, value);
}

Handle<NSNumber> make_number(double value) {
  return send<Handle<NSNumber>>(class_of<NSNumber>(), "numberWithDouble:"_sel, value);
}

Handle<NSArray> make_array(std::span<const Id> objects) {
  return send<Handle<NSArray>>(class_of<NSArray>(), "arrayWithObjects:count:"_sel, objects.data(),
                               NSUInteger{objects.size()});
}

Handle<NSDictionary> make_dictionary(std::span<const Id> keys, std::span<const Id> values) {
  assert(keys.size() == values.size());
  return send<Handle<NSDictionary>>(class_of<NSDictionary>(),
                                    "dictionaryWithObjects:forKeys:count:"_sel, values.data(),
                                    keys.data(), NSUInteger{keys.size()});
}

std::string text_of(Handle<NSString> string) {
  const char* text = string ? send<const char*>(string, "UTF8String"_sel) : nullptr;
  return text ? text : "";
}

std::string reason_of(Handle<NSError> error) {
  if (!error) return "no reason was given";
  return text_of(send<Handle<NSString>>(error, "localizedDescription"_sel));
}

bool macos_at_least(NSInteger major, NSInteger minor) {
  const auto info = send<Handle<NSProcessInfo>>(class_of<NSProcessInfo>(), "processInfo"_sel);
  return send<bool>(info, "isOperatingSystemAtLeastVersion:"_sel,
                    NSOperatingSystemVersion{.major = major, .minor = minor, .patch = 0});
}

}  // namespace sdpa::apple
