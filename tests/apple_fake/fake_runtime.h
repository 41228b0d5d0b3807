// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <typeindex>
#include <unordered_map>
#include <vector>

#include "sdpa/metal/messages.h"
#include "sdpa/metal/runtime.h"

/// An Objective-C runtime in C++ for tests, which checks every message it is handed.
///
/// Objects are counted and kept when dead, so that a later use is noticed. A mistake of the code
/// under test is noted in words (finish() gives them all) and, where there is no way on, thrown.
/// What a real system may do (no device, a failing kernel) is no mistake and is never noted.
namespace sdpa::apple_fake {

class FakeRuntime;
struct ClassInfo;

/// What an object is in C++. `self` is the object around it.
struct Body {
  apple::Id self = nullptr;
  virtual ~Body() = default;
};

}  // namespace sdpa::apple_fake

struct sdpa::apple::Object {
  apple_fake::ClassInfo* info = nullptr;  // null: this object is a class
  std::string origin = {};                // the message that made it
  std::atomic<int> references{1};
  std::unique_ptr<apple_fake::Body> body = {};
};

namespace sdpa::apple_fake {

/// The code of one declared message.
struct Method {
  const apple::Message* message;
  std::string encoding;
  void* code;
};

using MethodTable = std::unordered_map<apple::Selector, Method>;

struct ClassInfo : apple::Object {
  FakeRuntime* runtime = nullptr;
  std::string name;
  MethodTable instance_methods;
  MethodTable class_methods;
};

/// The system that the fake plays.
struct System {
  int macos_major = 15;
  int macos_minor = 0;
  std::set<std::string> missing = {};  // frameworks, classes, functions and selectors, by name
};

class FakeRuntime : public apple::Runtime {
 public:
  explicit FakeRuntime(System system = {});
  ~FakeRuntime() override;

  const System& system() const { return system_; }

  // What the fake is made of: see method.h for classes.
  ClassInfo& add_class(const char* name);
  void add_function(const char* name, void* code);
  apple::Id create(const char* class_name, std::unique_ptr<Body> body);
  apple::Id autorelease(apple::Id object);

  /// State that belongs to a framework, by its type.
  template <class Part>
  Part& part() {
    return *static_cast<Part*>(parts_.at(typeid(Part)).get());
  }

  template <class Part>
  void add_part(std::shared_ptr<Part> part) {
    parts_[typeid(Part)] = std::move(part);
  }

  void note(const std::string& mistake);
  [[noreturn]] void fail(const std::string& mistake);

  /// Throws where the object has been released for the last time.
  void require_alive(apple::Id object, const std::string& what);

  /// All mistakes so far, with the objects that are still alive as leaks.
  std::vector<std::string> finish();

  /// Whether a framework was loaded, by its name.
  bool has_loaded(const std::string& name);

  /// Every message that the fake can answer.
  std::vector<const apple::Message*> implemented() const;

  const Method* find(apple::Id receiver, apple::Selector selector) const;

  void* framework(const char* path) override;
  void* function(void* framework, const char* name, const char* encoding) override;
  apple::Id find_class(const char* name) override;
  apple::Selector selector(const char* name) override;
  void* implementation(apple::Id, apple::Selector, const char* encoding) override;
  bool responds(apple::Id receiver, apple::Selector selector) override;
  std::string system_encoding(apple::Kind, const char* owner, const char* selector) override;

  apple::Id class_of(apple::Id object) override { return object->info; }

  apple::Id retain(apple::Id object) override;
  void release(apple::Id object) noexcept override;
  void* push_pool() override;
  void pop_pool(void* pool) noexcept override;

 private:
  [[noreturn]] void fail_unknown(apple::Id receiver, apple::Selector selector);
  const MethodTable& methods_of(apple::Id receiver) const;

  const System system_;
  std::map<std::string, ClassInfo> classes_;
  std::map<std::string, void*> functions_;
  std::map<std::type_index, std::shared_ptr<void>> parts_;
  std::atomic<int> open_pools_{0};
  std::atomic<bool> closing_{false};

  std::mutex mutex_;  // of all below
  std::vector<std::string> mistakes_;
  std::set<std::string> loaded_;
  std::vector<std::unique_ptr<apple::Object>> objects_;
};

/// The runtime that answered the last message on this thread.
FakeRuntime& current_runtime();

/// The message last sent on this thread, as Objective-C writes it.
std::string current_message();

/// "MTLBuffer made by -[MTLDevice newBuffer...]".
std::string describe(apple::Id object);

/// An encoding in words: "void (object, NSUInteger)".
std::string in_words(const std::string& encoding);

}  // namespace sdpa::apple_fake
