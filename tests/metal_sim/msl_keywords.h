// SPDX-License-Identifier: MIT
// MSL's keywords as macros; nothing of the C++ library may be included after this.
//
// With MSL_SPACES, only for checking types, the address spaces are real ones of clang's, so that
// mixing them up is an error as it is on a Mac. Without it they mean nothing.
#pragma once

#define __METAL_VERSION__ 310
#define METAL_FUNC inline __attribute__((always_inline))
#define kernel

#ifdef MSL_SPACES
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define TG_ARRAY(T, name, dims) threadgroup T(&name) dims = *(threadgroup T(*) dims) nullptr
#else
#define device
#define constant
#define threadgroup
/// `threadgroup T name dims;` inside a kernel: one array for all threads of the threadgroup.
#define TG_ARRAY(T, name, dims)             \
  static const char name##_declaration = 0; \
  T(&name)                                  \
  dims = *static_cast<T(*) dims>(           \
      ::sim::threadgroup_array(&name##_declaration, sizeof(T dims), alignof(T)))
#endif
#define thread
