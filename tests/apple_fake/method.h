// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "sdpa/metal/objc.h"
#include "tests/apple_fake/fake_runtime.h"

/// Makes C++ functions answer messages.
///
///   define<"MTLBuffer">(runtime).on<"length", &Buffer::length>();
///
/// The signature is read off the function and held against messages.h when compiled, so the fake
/// cannot answer what is not declared, or with other types. Object arguments are written In<T>
/// (never nil) or Maybe<T>; they are checked for life and class. A new object is returned as
/// Made: it is handed over or autoreleased as the selector's name says.
namespace sdpa::apple_fake {

template <class T>
T* body_of(apple::Id object, const std::string& what) {
  if (!object) return nullptr;
  FakeRuntime& runtime = current_runtime();
  runtime.require_alive(object, what + " of " + current_message());
  T* body = dynamic_cast<T*>(object->body.get());
  if (!body)
    runtime.fail(what + " of " + current_message() + " is the wrong one: " + describe(object));
  return body;
}

template <class T>
class Maybe {
 public:
  explicit Maybe(apple::Id object) : body_(body_of<T>(object, "argument")) {}

  T* operator->() const { return body_; }

  T* get() const { return body_; }

 private:
  T* body_;
};

template <class T>
class In : public Maybe<T> {
 public:
  explicit In(apple::Id object) : Maybe<T>(object) {
    if (!object) current_runtime().fail("nil as an argument of " + current_message());
  }
};

/// A new object, with the one reference that it is born with. May be nil.
struct Made {
  apple::Id object = nullptr;
};

template <class T, class... Arguments>
Made make(const char* class_name, Arguments&&... arguments) {
  return {current_runtime().create(class_name,
                                   std::make_unique<T>(std::forward<Arguments>(arguments)...))};
}

/// What +new does for a class that needs nothing else.
template <class T>
Made make_new(ClassInfo& info) {
  return make<T>(info.name.c_str());
}

/// Keeps an object alive, as a strong property does.
class Hold {
 public:
  Hold() = default;

  explicit Hold(apple::Id object) : object_(object) {
    if (object_) object_->info->runtime->retain(object_);
  }

  /// Takes the new object over.
  explicit Hold(Made made) : object_(made.object) {}

  Hold(const Hold& other) : Hold(other.object_) {}

  Hold(Hold&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}

  Hold& operator=(Hold other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }

  ~Hold() {
    if (object_) object_->info->runtime->release(object_);
  }

  apple::Id id() const { return object_; }

 private:
  apple::Id object_ = nullptr;
};

}  // namespace sdpa::apple_fake

namespace sdpa::apple {

template <class T>
struct Lowered<apple_fake::Maybe<T>> {
  using type = Id;
};

template <class T>
struct Lowered<apple_fake::In<T>> {
  using type = Id;
};

template <>
struct Lowered<apple_fake::Made> {
  using type = Id;
};

}  // namespace sdpa::apple

namespace sdpa::apple_fake {

/// The C function behind a message: it has the exact type that the caller casts to.
template <apple::Literal selector, auto function>
struct Thunk;

template <apple::Literal selector, class Result, class Call>
apple::Carried<Result> give(Call call) {
  if constexpr (std::is_same_v<Result, Made>) {
    const apple::Id object = call().object;
    if (apple::hands_over(selector.view())) return object;
    return object ? current_runtime().autorelease(object) : nullptr;
  } else {
    return static_cast<apple::Carried<Result>>(call());
  }
}

template <apple::Literal selector, class T, class Result, class... Arguments,
          Result (T::*function)(Arguments...)>
struct Thunk<selector, function> {
  static constexpr apple::Kind kKind = apple::Kind::kInstance;
  static constexpr const auto& kEncoding = apple::kMethodEncoding<Result, Arguments...>;

  static apple::Carried<Result> code(apple::Id self, apple::Selector,
                                     apple::Carried<Arguments>... arguments) {
    T* body = body_of<T>(self, "receiver");
    return give<selector, Result>(
        [&] { return (body->*function)(static_cast<Arguments>(arguments)...); });
  }
};

template <apple::Literal selector, class Result, class... Arguments,
          Result (*function)(ClassInfo&, Arguments...)>
struct Thunk<selector, function> {
  static constexpr apple::Kind kKind = apple::Kind::kClass;
  static constexpr const auto& kEncoding = apple::kMethodEncoding<Result, Arguments...>;

  static apple::Carried<Result> code(apple::Id self, apple::Selector,
                                     apple::Carried<Arguments>... arguments) {
    auto& info = static_cast<ClassInfo&>(*self);
    return give<selector, Result>(
        [&] { return function(info, static_cast<Arguments>(arguments)...); });
  }
};

/// Adds methods to one class of the fake.
template <apple::Literal owner>
class Definition {
 public:
  explicit Definition(FakeRuntime& runtime)
      : runtime_(runtime), info_(runtime.add_class(owner.text)) {}

  template <apple::Literal selector, auto function>
  Definition& on() {
    using Code = Thunk<selector, function>;
    constexpr const apple::Message* message =
        apple::find_message(Code::kKind, owner.view(), selector.view());
    static_assert(message != apple::kNoMessage, "messages.h does not declare this message");
    static_assert(apple::encoding_matches(Code::kEncoding.view(), message->encoding),
                  "messages.h declares it with other types");
    auto& methods =
        Code::kKind == apple::Kind::kClass ? info_.class_methods : info_.instance_methods;
    methods[runtime_.selector(selector.text)] = {message, std::string(message->encoding),
                                                 reinterpret_cast<void*>(&Code::code)};
    return *this;
  }

 private:
  FakeRuntime& runtime_;
  ClassInfo& info_;
};

template <apple::Literal owner>
Definition<owner> define(FakeRuntime& runtime) {
  return Definition<owner>(runtime);
}

}  // namespace sdpa::apple_fake
