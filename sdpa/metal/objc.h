// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "sdpa/metal/encoding.h"
#include "sdpa/metal/messages.h"
#include "sdpa/metal/runtime.h"

/// Typed messages to Objective-C objects from plain C++.
///
///   AutoreleasePool pool;
///   auto queue = send<Ref<MTLCommandQueue>>(device, "newCommandQueue"_sel);
///
/// Checked when compiled: that messages.h declares the message with these very types, and that
/// the result's ownership suits the selector. Methods whose names begin with alloc, new, copy or
/// mutableCopy hand over a reference: ask for a Ref. All others give an object that is good until
/// the pool around it ends: ask for a Handle, or for a Ref to keep it longer.
namespace sdpa::apple {

// ---------------------------------------------------------------- handles

/// An object that somebody else keeps alive. May be nil.
template <class T>
class Handle {
 public:
  Handle() = default;

  explicit Handle(Id object) : object_(object) {}

  Id id() const { return object_; }

  /// Where a method may store an object: Apple's `NSError**`.
  Id* slot() { return &object_; }

  explicit operator bool() const { return object_ != nullptr; }

 private:
  Id object_ = nullptr;
};

/// Owns one reference to an object. May be nil.
template <class T>
class Ref {
 public:
  Ref() = default;

  Ref(const Ref& other) : Ref(share(other.object_)) {}

  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}

  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }

  ~Ref() {
    if (object_) runtime().release(object_);
  }

  /// Takes over a reference.
  static Ref adopt(Id object) { return Ref(object); }

  /// Adds a reference.
  static Ref share(Id object) { return Ref(object ? runtime().retain(object) : nullptr); }

  /// Hands the reference over to the caller.
  [[nodiscard]] Id leak() { return std::exchange(object_, nullptr); }

  Id id() const { return object_; }

  operator Handle<T>() const { return Handle<T>(object_); }

  explicit operator bool() const { return object_ != nullptr; }

 private:
  explicit Ref(Id object) : object_(object) {}

  Id object_ = nullptr;
};

/// A class: the receiver of class messages.
template <class T>
class Class {
 public:
  explicit Class(Id object) : object_(object) {}

  Id id() const { return object_; }

 private:
  Id object_;
};

/// Keeps the objects that are not owned by anybody until its end. Every call into Apple's
/// frameworks needs one around it, as they make such objects of their own.
class AutoreleasePool {
 public:
  AutoreleasePool() : pool_(runtime().push_pool()) {}

  AutoreleasePool(const AutoreleasePool&) = delete;
  AutoreleasePool& operator=(const AutoreleasePool&) = delete;

  ~AutoreleasePool() { runtime().pop_pool(pool_); }

 private:
  void* pool_;
};

/// No object, as an argument.
inline constexpr struct Nil {
} kNil;

/// No closure, as an argument.
inline constexpr struct NoBlock {
} kNoBlock;

template <class T>
struct Lowered<Handle<T>> {
  using type = Id;

  static Id of(const Handle<T>& handle) { return handle.id(); }
};

template <class T>
struct Lowered<Ref<T>> {
  using type = Id;

  static Id of(const Ref<T>& ref) { return ref.id(); }
};

template <>
struct Lowered<Nil> {
  using type = Id;

  static Id of(Nil) { return nullptr; }
};

template <>
struct Lowered<NoBlock> {
  using type = Block;

  static Block of(NoBlock) { return nullptr; }
};

template <class>
inline constexpr bool kIsRef = false;
template <class T>
inline constexpr bool kIsRef<Ref<T>> = true;
template <class>
inline constexpr bool kIsHandle = false;
template <class T>
inline constexpr bool kIsHandle<Handle<T>> = true;

// ---------------------------------------------------------------- selectors

/// One selector, looked up once for each runtime. One lives for each name in the program.
class SelectorSlot {
 public:
  constexpr explicit SelectorSlot(const char* name) : name_(name) {}

  Selector in(Runtime& runtime) {
    if (generation_.load(std::memory_order_acquire) != runtime_generation()) look_up(runtime);
    return selector_.load(std::memory_order_relaxed);
  }

 private:
  void look_up(Runtime& runtime);

  const char* const name_;
  std::atomic<unsigned> generation_{0};
  std::atomic<Selector> selector_{nullptr};
};

template <Literal name>
struct SelectorName {
  static constexpr std::string_view kText = name.view();
  static inline constinit SelectorSlot slot{name.text};
};

template <Literal name>
constexpr SelectorName<name> operator""_sel() {
  return {};
}

constexpr std::size_t count_colons(std::string_view selector) {
  return static_cast<std::size_t>(std::count(selector.begin(), selector.end(), ':'));
}

/// Whether a selector belongs to a family: newBuffer and new do to new, newest does not.
constexpr bool in_family(std::string_view selector, std::string_view family) {
  if (!selector.starts_with(family)) return false;
  const std::string_view rest = selector.substr(family.size());
  return rest.empty() || rest.front() < 'a' || rest.front() > 'z';
}

constexpr bool is_init(std::string_view selector) { return in_family(selector, "init"); }

/// Whether the method hands a reference over to its caller.
constexpr bool hands_over(std::string_view selector) {
  return in_family(selector, "alloc") || in_family(selector, "new") ||
         in_family(selector, "copy") || in_family(selector, "mutableCopy") || is_init(selector);
}

// ---------------------------------------------------------------- messages

template <class>
struct Receiver;

template <class T>
struct Receiver<Handle<T>> {
  using Owner = T;
  static constexpr Kind kKind = Kind::kInstance;
};

template <class T>
struct Receiver<Ref<T>> : Receiver<Handle<T>> {};

template <class T>
struct Receiver<Class<T>> {
  using Owner = T;
  static constexpr Kind kKind = Kind::kClass;
};

enum class Declared { kNot, kOtherwise, kSo };

/// Whether messages.h has this message, with these types. Every class has NSObject's messages.
constexpr Declared declared(Kind kind, std::string_view owner, std::string_view selector,
                            std::string_view encoding) {
  const Message* message = find_message(kind, owner, selector);
  if (message == kNoMessage) message = find_message(kind, NSObject::kName, selector);
  if (message == kNoMessage) return Declared::kNot;
  return encoding_matches(encoding, message->encoding) ? Declared::kSo : Declared::kOtherwise;
}

[[noreturn]] void throw_sent_to_nil(std::string_view owner, std::string_view selector);
[[noreturn]] void throw_no_function(std::string_view name);

/// The class itself. Throws Error where the system has none of that name.
Id require_class(const char* name);

template <class T>
Class<T> class_of() {
  return Class<T>(require_class(T::kName.data()));
}

/// Gives an object the ownership that the caller asked for.
template <class Result, bool handed_over, class Raw>
Result receive(Raw raw) {
  if constexpr (!kIsRef<Result>) {
    return static_cast<Result>(raw);
  } else if constexpr (handed_over) {
    return Result::adopt(raw);
  } else {
    return Result::share(raw);
  }
}

template <class Result, class To, class Name>
constexpr void check_ownership() {
  static_assert(!hands_over(Name::kText) || kIsRef<Result>,
                "alloc, new, copy, mutableCopy and init hand over a reference: ask for a Ref");
  static_assert(!is_init(Name::kText) || (kIsRef<To> && !std::is_lvalue_reference_v<To>),
                "init takes its receiver over: std::move a Ref");
  static_assert(
      std::is_void_v<Result> || kIsRef<Result> || kIsHandle<Result> || !std::is_class_v<Result>,
      "no structures as results: they need another entry point on x86-64");
}

/// Sends a message and gives its result as `Result`. Sending to nil is an error.
template <class Result, class To, class Name, class... Arguments>
Result send(To&& to, Name, const Arguments&... arguments) {
  using Target = Receiver<std::remove_cvref_t<To>>;
  constexpr const auto& encoding = kMethodEncoding<Result, Arguments...>;
  constexpr Declared known =
      declared(Target::kKind, Target::Owner::kName, Name::kText, encoding.view());
  static_assert(count_colons(Name::kText) == sizeof...(Arguments),
                "as many arguments as the selector has colons");
  static_assert(known != Declared::kNot, "messages.h does not declare this message");
  static_assert(known != Declared::kOtherwise, "messages.h declares it with other types");
  check_ownership<Result, To, Name>();

  const Id self = to.id();
  if (!self) throw_sent_to_nil(Target::Owner::kName, Name::kText);
  Runtime& rt = runtime();
  const Selector selector = Name::slot.in(rt);
  using Code = Carried<Result> (*)(Id, Selector, Carried<Arguments>...);
  const auto code = reinterpret_cast<Code>(rt.implementation(self, selector, encoding.text));
  if constexpr (is_init(Name::kText)) (void)to.leak();
  if constexpr (std::is_void_v<Result>) {
    code(self, selector, carry(arguments)...);
  } else {
    return receive<Result, hands_over(Name::kText)>(code(self, selector, carry(arguments)...));
  }
}

/// Whether the object knows a message that only newer systems have.
template <class T, class Name>
bool responds(const T& object, Name) {
  static_assert(
      find_message(Receiver<T>::kKind, Receiver<T>::Owner::kName, Name::kText) != kNoMessage,
      "messages.h does not declare this message");
  return runtime().responds(object.id(), Name::slot.in(runtime()));
}

/// Calls a C function of a framework. A Ref as the result takes over a reference.
template <class Result, Literal name, class... Arguments>
Result call(void* framework, const Arguments&... arguments) {
  constexpr const auto& encoding = kFunctionEncoding<Result, Arguments...>;
  constexpr const Function* known = find_function(name.view());
  static_assert(known != kNoFunction, "messages.h does not declare this function");
  static_assert(encoding_matches(encoding.view(), known->encoding),
                "messages.h declares it with other types");
  using Code = Carried<Result> (*)(Carried<Arguments>...);
  void* found = runtime().function(framework, name.text, encoding.text);
  if (!found) throw_no_function(name.view());
  return receive<Result, true>(reinterpret_cast<Code>(found)(carry(arguments)...));
}

}  // namespace sdpa::apple
