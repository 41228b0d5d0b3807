// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>

#include "sdpa/metal/objc.h"

/// The few values of Foundation that messages carry. All are good until the pool around them ends.
namespace sdpa::apple {

Handle<NSString> make_string(const std::string& text);
Handle<NSNumber> make_number(NSInteger value);
Handle<NSNumber> make_number(double value);
Handle<NSArray> make_array(std::span<const Id> objects);

/// keys[i] leads to values[i].
Handle<NSDictionary> make_dictionary(std::span<const Id> keys, std::span<const Id> values);

/// The text of a string; empty for nil.
std::string text_of(Handle<NSString> string);

/// What an error says, or that it says nothing.
std::string reason_of(Handle<NSError> error);

/// Whether the running macOS is at least this one.
bool macos_at_least(NSInteger major, NSInteger minor = 0);

}  // namespace sdpa::apple
