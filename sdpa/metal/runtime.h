// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

/// Apple's frameworks, reached from plain C++ over the Objective-C runtime found at run time.
///
/// A `Runtime` is everything that this library asks of Objective-C. The default one looks for
/// Apple's with dlopen, so the same object code is linked everywhere and finds out on each machine
/// whether the frameworks are there. Tests put a runtime of their own in its place.
namespace sdpa::apple {

using Id = struct Object*;                   // any object, or a class
using Selector = const struct SelectorTag*;  // an interned name of a message
using Block = struct BlockTag*;              // a closure of Apple's; only ever passed as null here

/// What Apple's side could not do, as one sentence.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Whether a message goes to an object or to its class.
enum class Kind : char { kInstance = '-', kClass = '+' };

/// The types of a message or function travel as an Objective-C type encoding, result first:
/// "v@:@QQ" is void (object, selector, object, NSUInteger, NSUInteger). See encoding.h.
class Runtime {
 public:
  virtual ~Runtime() = default;

  /// Loads a framework by its path; null where it is not there.
  virtual void* framework(const char* path) = 0;

  /// A C function of a framework; null where it is not there.
  virtual void* function(void* framework, const char* name, const char* encoding) = 0;

  /// A class by its name; null where it is not there.
  virtual Id find_class(const char* name) = 0;

  virtual Selector selector(const char* name) = 0;

  /// The code to call as Result(Id, Selector, Arguments...). The receiver is never null.
  virtual void* implementation(Id receiver, Selector selector, const char* encoding) = 0;

  virtual bool responds(Id receiver, Selector selector) = 0;

  /// The encoding that the system itself gives for a message of a class or protocol; empty where
  /// it knows no such message.
  virtual std::string system_encoding(Kind kind, const char* owner, const char* selector) = 0;

  /// The class of what may be an object: it is compared and never used, so any readable memory will
  /// do.
  virtual Id class_of(Id object) = 0;

  virtual Id retain(Id object) = 0;
  virtual void release(Id object) noexcept = 0;
  virtual void* push_pool() = 0;
  virtual void pop_pool(void* pool) noexcept = 0;
};

/// The runtime in use: Apple's unless another was set. Throws Error where there is none.
Runtime& runtime();

/// Puts another runtime in place, or Apple's again with null. No message may be under way.
void use_runtime(Runtime* runtime);

/// Changes with every use_runtime(): what was looked up in one runtime is not valid in another.
unsigned runtime_generation() noexcept;

/// Whether every message is compared with the encoding that the system gives for its method.
enum class MessageCheck { kOff, kOn };

struct AppleOptions {
  std::string root;  // a folder to find Apple's libraries under, for tests
  MessageCheck check = MessageCheck::kOff;
};

/// Apple's runtime, opened afresh. Throws Error with the reason where there is none.
std::unique_ptr<Runtime> open_apple_runtime(const AppleOptions& options);

}  // namespace sdpa::apple
