// SPDX-License-Identifier: MIT
// Stands in for libobjc.A.dylib and Metal's binary, so that runtime.cpp's own code for Apple's
// runtime runs on Linux. Its objects are those of the fake runtime that the test program holds.
#include <cstdint>
#include <string_view>

#include "tests/apple_fake/fake_runtime.h"

using sdpa::apple::Id;
using sdpa::apple::Selector;
using sdpa::apple_fake::ClassInfo;
using sdpa::apple_fake::FakeRuntime;
using sdpa::apple_fake::Method;
using sdpa::apple_fake::MethodTable;

extern FakeRuntime* stub_runtime;

namespace {

const char* text_of(Selector selector) { return reinterpret_cast<const char*>(selector); }

// The class of a class is that class with its lowest bit set.
Id meta_class(Id cls) { return reinterpret_cast<Id>(reinterpret_cast<std::uintptr_t>(cls) | 1); }

bool is_meta_class(Id cls) { return reinterpret_cast<std::uintptr_t>(cls) & 1; }

ClassInfo* info_of(Id cls) {
  const auto address = reinterpret_cast<std::uintptr_t>(cls) & ~std::uintptr_t{1};
  return static_cast<ClassInfo*>(reinterpret_cast<Id>(address));
}

/// As in Metal, where all but a few names are protocols.
bool is_protocol(std::string_view name) {
  return name.starts_with("MTL") && name != "MTLCompileOptions";
}

struct Description {
  Selector name;
  const char* types;
};

}  // namespace

extern "C" {

Id objc_getClass(const char* name) {
  return is_protocol(name) ? nullptr : stub_runtime->find_class(name);
}

Id objc_getProtocol(const char* name) {
  return is_protocol(name) ? stub_runtime->find_class(name) : nullptr;
}

Selector sel_registerName(const char* name) { return stub_runtime->selector(name); }

const char* sel_getName(Selector selector) { return text_of(selector); }

Id object_getClass(Id object) { return object->info ? object->info : meta_class(object); }

const char* class_getName(Id cls) { return info_of(cls)->name.c_str(); }

const void* class_getInstanceMethod(Id cls, Selector selector) {
  const MethodTable& methods =
      is_meta_class(cls) ? info_of(cls)->class_methods : info_of(cls)->instance_methods;
  const auto found = methods.find(selector);
  return found == methods.end() ? nullptr : &found->second;
}

bool class_respondsToSelector(Id cls, Selector selector) {
  return class_getInstanceMethod(cls, selector) != nullptr;
}

const char* method_getTypeEncoding(const Method* method) { return method->encoding.c_str(); }

Description protocol_getMethodDescription(Id protocol, Selector selector, bool required, bool) {
  const auto& methods = static_cast<ClassInfo*>(protocol)->instance_methods;
  const auto found = methods.find(selector);
  if (!required || found == methods.end()) return {nullptr, nullptr};
  return {selector, found->second.encoding.c_str()};
}

Id objc_retain(Id object) { return stub_runtime->retain(object); }

void objc_release(Id object) { stub_runtime->release(object); }

void* objc_autoreleasePoolPush() { return stub_runtime->push_pool(); }

void objc_autoreleasePoolPop(void* pool) { stub_runtime->pop_pool(pool); }

Id MTLCreateSystemDefaultDevice() {
  void* code = stub_runtime->function(stub_runtime, "MTLCreateSystemDefaultDevice", "@");
  return reinterpret_cast<Id (*)()>(code)();
}

void* stub_look_up(Id object, Selector selector) {
  const Method* method = stub_runtime->find(object, selector);
  return stub_runtime->implementation(object, selector, method->encoding.c_str());
}

// As Apple's does: keeps the registers of all arguments and jumps to the method.
__attribute__((naked)) void objc_msgSend() {
  asm("push %rdi; push %rsi; push %rdx; push %rcx; push %r8; push %r9; sub $24, %rsp;"
      "movsd %xmm0, (%rsp); movsd %xmm1, 8(%rsp);"
      "call stub_look_up@PLT;"
      "movsd (%rsp), %xmm0; movsd 8(%rsp), %xmm1; add $24, %rsp;"
      "pop %r9; pop %r8; pop %rcx; pop %rdx; pop %rsi; pop %rdi; jmp *%rax");
}
}
