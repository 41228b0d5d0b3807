// SPDX-License-Identifier: MIT
#include "tests/apple_fake/fake_runtime.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "sdpa/metal/encoding.h"

namespace sdpa::apple_fake {

using apple::Error;
using apple::Id;
using apple::Kind;
using apple::Selector;

namespace {

/// What was last asked for on this thread.
struct Call {
  FakeRuntime* runtime = nullptr;
  const Method* method = nullptr;
  std::string function;
};

struct Pool {
  FakeRuntime* runtime;
  std::vector<Id> objects;
};

thread_local Call last_call;
thread_local std::vector<Pool> pools;

const char* name_of(Selector selector) { return reinterpret_cast<const char*>(selector); }

std::string class_name(Id object) {
  return object->info ? object->info->name : static_cast<const ClassInfo*>(object)->name;
}

/// How many letters have to change to make one word of the other.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (const char letter : a) {
    std::size_t diagonal = row[0]++;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t best =
          std::min({row[j] + 1, row[j + 1] + 1, diagonal + (letter != b[j] ? 1 : 0)});
      diagonal = std::exchange(row[j + 1], best);
    }
  }
  return row.back();
}

std::string nearest(const MethodTable& methods, const char* wanted) {
  std::string best = "none";
  std::size_t fewest = std::string_view::npos;
  for (const auto& [selector, method] : methods) {
    const std::size_t letters = distance(name_of(selector), wanted);
    if (letters < fewest) best = name_of(selector), fewest = letters;
  }
  return best;
}

}  // namespace

FakeRuntime& current_runtime() { return *last_call.runtime; }

std::string current_message() {
  return last_call.method ? title(*last_call.method->message) : last_call.function;
}

std::string describe(Id object) {
  if (!object->info) return "class " + class_name(object);
  return class_name(object) + " made by " + object->origin;
}

FakeRuntime::FakeRuntime(System system) : system_(std::move(system)) {}

/// What the test left alive is taken down here; its releases no longer count.
FakeRuntime::~FakeRuntime() {
  closing_ = true;
  std::erase_if(pools, [this](const Pool& pool) { return pool.runtime == this; });
  for (auto& object : objects_) object->body.reset();
}

ClassInfo& FakeRuntime::add_class(const char* name) {
  ClassInfo& info = classes_[name];
  info.runtime = this;
  info.name = name;
  return info;
}

void FakeRuntime::add_function(const char* name, void* code) { functions_[name] = code; }

Id FakeRuntime::create(const char* class_name, std::unique_ptr<Body> body) {
  auto object = std::make_unique<apple::Object>();
  object->info = &classes_.at(class_name);
  object->origin = current_message();
  object->body = std::move(body);
  object->body->self = object.get();
  if (pools.empty())
    note("no autorelease pool around the message that made " + describe(object.get()));
  const std::lock_guard lock(mutex_);
  return objects_.emplace_back(std::move(object)).get();
}

Id FakeRuntime::autorelease(Id object) {
  if (object && !pools.empty()) pools.back().objects.push_back(object);
  return object;  // without a pool it leaks, as with Apple
}

void FakeRuntime::note(const std::string& mistake) {
  const std::lock_guard lock(mutex_);
  mistakes_.push_back(mistake);
}

void FakeRuntime::fail(const std::string& mistake) {
  note(mistake);
  throw Error(mistake);
}

void FakeRuntime::require_alive(Id object, const std::string& what) {
  if (object->info && object->references.load(std::memory_order_acquire) <= 0) {
    fail(what + ": use after its last release of " + describe(object));
  }
}

std::vector<std::string> FakeRuntime::finish() {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> all = mistakes_;
  for (const auto& object : objects_) {
    if (object->references <= 0) continue;
    all.push_back("leak of " + describe(object.get()) +
                  ", references left: " + std::to_string(object->references));
  }
  if (open_pools_ > 0) all.push_back("an autorelease pool was never popped");
  return all;
}

std::vector<const apple::Message*> FakeRuntime::implemented() const {
  std::vector<const apple::Message*> all;
  for (const auto& [name, info] : classes_) {
    for (const auto* table : {&info.instance_methods, &info.class_methods}) {
      for (const auto& [selector, method] : *table) all.push_back(method.message);
    }
  }
  return all;
}

const MethodTable& FakeRuntime::methods_of(Id receiver) const {
  return receiver->info ? receiver->info->instance_methods
                        : static_cast<const ClassInfo*>(receiver)->class_methods;
}

const Method* FakeRuntime::find(Id receiver, Selector selector) const {
  const MethodTable& methods = methods_of(receiver);
  const auto found = methods.find(selector);
  if (found == methods.end() || found->second.message->since > system_.macos_major) return nullptr;
  const bool lacks_some = !system_.missing.empty();
  if (lacks_some && system_.missing.contains(std::string(found->second.message->selector))) {
    return nullptr;
  }
  return &found->second;
}

void* FakeRuntime::framework(const char* path) {
  const std::string name = std::string(path).substr(std::string(path).rfind('/') + 1);
  if (system_.missing.contains(name)) return nullptr;
  const std::lock_guard lock(mutex_);
  loaded_.insert(name);
  return this;
}

bool FakeRuntime::has_loaded(const std::string& name) {
  const std::lock_guard lock(mutex_);
  return loaded_.contains(name);
}

void* FakeRuntime::function(void* framework, const char* name, const char* encoding) {
  const auto found = functions_.find(name);
  const apple::Function* declared = apple::find_function(name);
  if (!framework) fail(std::string(name) + " asked of a framework that is not loaded");
  if (found == functions_.end() || declared == apple::kNoFunction || system_.missing.contains(name))
    return nullptr;
  if (!apple::encoding_matches(encoding, declared->encoding)) {
    fail(std::string(name) + " called as " + in_words(encoding) + ", but it is " +
         in_words(std::string(declared->encoding)));
  }
  last_call = {this, nullptr, name};
  return found->second;
}

Id FakeRuntime::find_class(const char* name) {
  const auto found = classes_.find(name);
  return found == classes_.end() || system_.missing.contains(name) ? nullptr : &found->second;
}

/// Names are interned once for all fakes, so a selector stays valid from one to the next.
Selector FakeRuntime::selector(const char* name) {
  static std::set<std::string> names;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  return reinterpret_cast<Selector>(names.insert(name).first->c_str());
}

void FakeRuntime::fail_unknown(Id receiver, Selector selector) {
  fail(describe(receiver) + " has no method " + name_of(selector) + "; the nearest is " +
       nearest(methods_of(receiver), name_of(selector)));
}

void* FakeRuntime::implementation(Id receiver, Selector selector, const char* encoding) {
  if (!receiver) fail(std::string(name_of(selector)) + " was sent to nil");
  require_alive(receiver, name_of(selector));
  const Method* method = find(receiver, selector);
  if (!method) fail_unknown(receiver, selector);
  if (!apple::encoding_matches(encoding, method->encoding)) {
    fail(title(*method->message) + " sent as " + in_words(encoding) + ", but it is " +
         in_words(method->encoding));
  }
  last_call = {this, method, {}};
  return method->code;
}

bool FakeRuntime::responds(Id receiver, Selector selector) {
  return find(receiver, selector) != nullptr;
}

std::string FakeRuntime::system_encoding(Kind kind, const char* owner, const char* name) {
  const auto found = classes_.find(owner);
  if (found == classes_.end()) return "";
  ClassInfo& info = found->second;
  const auto& methods = kind == Kind::kClass ? info.class_methods : info.instance_methods;
  const auto method = methods.find(selector(name));
  return method == methods.end() ? "" : method->second.encoding;
}

Id FakeRuntime::retain(Id object) {
  require_alive(object, "retain");
  object->references.fetch_add(1, std::memory_order_relaxed);
  return object;
}

void FakeRuntime::release(Id object) noexcept {
  if (closing_) return;
  const int before = object->references.fetch_sub(1, std::memory_order_acq_rel);
  if (before == 1) object->body.reset();
  if (before > 0) return;
  object->references.fetch_add(1, std::memory_order_relaxed);
  note("released once too often: " + describe(object));
}

void* FakeRuntime::push_pool() {
  ++open_pools_;
  pools.push_back({this, {}});
  return reinterpret_cast<void*>(pools.size());
}

void FakeRuntime::pop_pool(void* pool) noexcept {
  if (reinterpret_cast<std::size_t>(pool) != pools.size()) {
    return note("autorelease pools were popped out of order");
  }
  const std::vector<Id> objects = std::move(pools.back().objects);
  pools.pop_back();
  --open_pools_;
  for (const Id object : objects) release(object);
}

}  // namespace sdpa::apple_fake
