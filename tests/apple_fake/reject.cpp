// SPDX-License-Identifier: MIT
// Messages that must not compile. reject_test.py compiles each case with its wrong line, which has
// to fail with the words behind "expect:", and all cases with their right lines, which has to work.
#include <string>

#include "sdpa/metal/objc.h"
#include "tests/apple_fake/method.h"

#ifndef CASE
#define CASE 0
#endif

using namespace sdpa::apple;  // NOLINT: a file of one test

void messages(Handle<MTLComputeCommandEncoder> encoder, Ref<MTLBuffer> buffer,
              Ref<MTLDevice> device, const void* bytes, NSUInteger index) {
#if CASE == 1  // expect: cannot be sent
  send<void>(encoder, "setBytes:length:atIndex:"_sel, bytes, index, 3);
#else
  send<void>(encoder, "setBytes:length:atIndex:"_sel, bytes, index, 3ul);
#endif

#if CASE == 2  // expect: cannot be sent
  send<int>(buffer, "length"_sel);
#else
  send<NSUInteger>(buffer, "length"_sel);
#endif

#if CASE == 3  // expect: as many arguments as the selector has colons
  send<void>(encoder, "setBuffer:offset:atIndex:"_sel, buffer);
#else
  send<void>(encoder, "setBuffer:offset:atIndex:"_sel, buffer, index, index);
#endif

#if CASE == 4  // expect: hand over a reference: ask for a Ref
  send<Handle<MTLCommandQueue>>(device, "newCommandQueue"_sel);
#else
  send<Ref<MTLCommandQueue>>(device, "newCommandQueue"_sel);
#endif

#if CASE == 5  // expect: cannot be sent
  send<void>(encoder, "setBytes:length:atIndex:"_sel, std::string(), index, index);
#else
  send<void>(encoder, "setBytes:length:atIndex:"_sel, bytes, index, index);
#endif

#if CASE == 6  // expect: messages.h does not declare this message
  send<void>(encoder, "setBuffer:offset:index:"_sel, buffer, index, index);
#else
  send<void>(encoder, "setBuffer:offset:atIndex:"_sel, buffer, index, index);
#endif

#if CASE == 7  // expect: messages.h declares it with other types
  send<void>(encoder, "setBuffer:offset:atIndex:"_sel, buffer, index, 0l);
#else
  send<void>(encoder, "setBuffer:offset:atIndex:"_sel, buffer, index, 0ul);
#endif

#if CASE == 8  // expect: messages.h does not declare this message
  send<NSUInteger>(device, "length"_sel);
#else
  send<NSUInteger>(buffer, "length"_sel);
#endif

#if CASE == 9  // expect: messages.h does not declare this message
  send<Handle<NSProcessInfo>>(Handle<NSProcessInfo>(), "processInfo"_sel);
#else
  send<Handle<NSProcessInfo>>(class_of<NSProcessInfo>(), "processInfo"_sel);
#endif

#if CASE == 10  // expect: messages.h declares it with other types
  call<NSUInteger, "MTLCreateSystemDefaultDevice">(nullptr);
#else
  call<Ref<MTLDevice>, "MTLCreateSystemDefaultDevice">(nullptr);
#endif

#if CASE == 11  // expect: no structures as results
  check_ownership<MTLSize, Handle<MTLBuffer>, SelectorName<"length">>();
#else
  check_ownership<NSUInteger, Handle<MTLBuffer>, SelectorName<"length">>();
#endif

#if CASE == 12  // expect: init takes its receiver over
  check_ownership<Ref<MTLBuffer>, Ref<MTLBuffer>&, SelectorName<"initWithBuffer:">>();
#else
  check_ownership<Ref<MTLBuffer>, Ref<MTLBuffer>, SelectorName<"initWithBuffer:">>();
#endif
}

struct Body : sdpa::apple_fake::Body {
  NSUInteger length() { return 0; }

  NSInteger signed_length() { return 0; }
};

void fake_methods(sdpa::apple_fake::FakeRuntime& runtime) {
#if CASE == 13  // expect: messages.h does not declare this message
  sdpa::apple_fake::define<"MTLBuffer">(runtime).on<"size", &Body::length>();
#else
  sdpa::apple_fake::define<"MTLBuffer">(runtime).on<"length", &Body::length>();
#endif

#if CASE == 14  // expect: messages.h declares it with other types
  sdpa::apple_fake::define<"MTLBuffer">(runtime).on<"length", &Body::signed_length>();
#else
  sdpa::apple_fake::define<"MTLBuffer">(runtime).on<"length", &Body::length>();
#endif
}
