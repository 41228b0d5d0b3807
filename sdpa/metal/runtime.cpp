// SPDX-License-Identifier: MIT
#include "sdpa/metal/runtime.h"

#include <dlfcn.h>

#include <atomic>

#include "sdpa/metal/encoding.h"

namespace sdpa::apple {
namespace {

/// A method of a protocol as the Objective-C runtime describes it.
struct MethodDescription {
  Selector name;
  const char* types;
};

/// The C functions of libobjc that we call, each looked up by its name.
struct ObjectiveC {
  void* library;
  Id (*get_class)(const char*) = find<Id(const char*)>("objc_getClass");
  Id (*get_protocol)(const char*) = find<Id(const char*)>("objc_getProtocol");
  Selector (*register_name)(const char*) = find<Selector(const char*)>("sel_registerName");
  const char* (*name_of)(Selector) = find<const char*(Selector)>("sel_getName");
  Id (*class_of)(Id) = find<Id(Id)>("object_getClass");
  const char* (*class_name)(Id) = find<const char*(Id)>("class_getName");
  bool (*responds)(Id, Selector) = find<bool(Id, Selector)>("class_respondsToSelector");
  void* (*instance_method)(Id, Selector) = find<void*(Id, Selector)>("class_getInstanceMethod");
  const char* (*encoding_of)(void*) = find<const char*(void*)>("method_getTypeEncoding");
  MethodDescription (*describe)(Id, Selector, bool required, bool instance) =
      find<MethodDescription(Id, Selector, bool, bool)>("protocol_getMethodDescription");
  Id (*retain)(Id) = find<Id(Id)>("objc_retain");
  void (*release)(Id) = find<void(Id)>("objc_release");
  void* (*push_pool)() = find<void*()>("objc_autoreleasePoolPush");
  void (*pop_pool)(void*) = find<void(void*)>("objc_autoreleasePoolPop");
  void* message_send = symbol("objc_msgSend");

  void* symbol(const char* name) const {
    void* found = dlsym(library, name);
    if (!found)
      throw Error(std::string("The Objective-C runtime of this system has no ") + name + ".");
    return found;
  }

  template <class Function>
  Function* find(const char* name) const {
    return reinterpret_cast<Function*>(symbol(name));
  }
};

void* open_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (!library) throw Error("There is no Objective-C runtime on this system.");
  return library;
}

class AppleRuntime final : public Runtime {
 public:
  explicit AppleRuntime(const AppleOptions& options)
      : options_(options), objc_{open_library(options.root + "/usr/lib/libobjc.A.dylib")} {}

  void* framework(const char* path) override {
    return dlopen((options_.root + path).c_str(), RTLD_LAZY | RTLD_LOCAL);
  }

  void* function(void* framework, const char* name, const char*) override {
    return dlsym(framework, name);
  }

  Id find_class(const char* name) override { return objc_.get_class(name); }

  Selector selector(const char* name) override { return objc_.register_name(name); }

  void* implementation(Id receiver, Selector selector, const char* encoding) override {
    if (options_.check == MessageCheck::kOn) check(receiver, selector, encoding);
    return objc_.message_send;
  }

  bool responds(Id receiver, Selector selector) override {
    return objc_.responds(objc_.class_of(receiver), selector);
  }

  std::string system_encoding(Kind kind, const char* owner, const char* selector) override {
    const Selector name = objc_.register_name(selector);
    if (const Id cls = objc_.get_class(owner)) {
      return method_encoding(kind == Kind::kClass ? objc_.class_of(cls) : cls, name);
    }
    const Id protocol = objc_.get_protocol(owner);
    return protocol ? protocol_encoding(protocol, name, kind) : "";
  }

  Id class_of(Id object) override { return objc_.class_of(object); }

  Id retain(Id object) override { return objc_.retain(object); }

  void release(Id object) noexcept override { objc_.release(object); }

  void* push_pool() override { return objc_.push_pool(); }

  void pop_pool(void* pool) noexcept override { objc_.pop_pool(pool); }

 private:
  std::string method_encoding(Id cls, Selector name) const {
    void* method = objc_.instance_method(cls, name);
    return method ? objc_.encoding_of(method) : "";
  }

  std::string protocol_encoding(Id protocol, Selector name, Kind kind) const {
    for (const bool required : {true, false}) {
      const auto method = objc_.describe(protocol, name, required, kind == Kind::kInstance);
      if (method.types) return method.types;
    }
    return "";
  }

  void check(Id receiver, Selector selector, const char* sent) const {
    const Id cls = objc_.class_of(receiver);
    const std::string is = method_encoding(cls, selector);
    if (encoding_matches(sent, is)) return;
    throw Error(std::string(objc_.class_name(cls)) + " " + objc_.name_of(selector) + ": sent as " +
                sent + ", but the system has " + (is.empty() ? "no such method" : is));
  }

  const AppleOptions options_;
  const ObjectiveC objc_;
};

std::atomic<Runtime*> in_use{nullptr};
std::atomic<unsigned> generation{1};

/// Never destroyed: objects that outlive main() still release themselves through it.
Runtime& apple_runtime() {
  static Runtime* const apple = open_apple_runtime({}).release();
  return *apple;
}

}  // namespace

Runtime& runtime() {
  Runtime* const other = in_use.load(std::memory_order_acquire);
  return other ? *other : apple_runtime();
}

void use_runtime(Runtime* runtime) {
  in_use.store(runtime, std::memory_order_release);
  generation.fetch_add(1, std::memory_order_acq_rel);
}

unsigned runtime_generation() noexcept { return generation.load(std::memory_order_acquire); }

std::unique_ptr<Runtime> open_apple_runtime(const AppleOptions& options) {
  return std::make_unique<AppleRuntime>(options);
}

}  // namespace sdpa::apple
