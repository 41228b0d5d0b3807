// SPDX-License-Identifier: MIT
// Atomic operations on 32-bit values in device and threadgroup memory. They race with plain
// accesses and not with each other; relaxed as they are, they order nothing else.
#pragma once
#include "lane.h"
#include "msl_simdgroup.h"

namespace metal {

enum memory_order { memory_order_relaxed };

template <class T>
struct atomic {
  static_assert(sizeof(T) == 4, "Metal's atomic types that kernels may change have 32 bits");
  T value;
};

typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;

#ifndef MSL_SPACES  // there, msl_spaces.h declares them

/// Replaces the value by what `change` makes of it; returns what was there.
template <class T, class Change>
MSL_UNCHECKED T atomic_change(const volatile atomic<T>* object, Change change,
                              sim::AtomicUse use = sim::AtomicUse::kChange) {
  sim::check_atomic(const_cast<const atomic<T>*>(object), sizeof(T), use);
  auto* word = reinterpret_cast<uint32_t*>(const_cast<atomic<T>*>(object));
  uint32_t seen = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &seen,
                                      std::bit_cast<uint32_t>(T(change(std::bit_cast<T>(seen)))),
                                      false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<T>(seen);
}

template <class T>
MSL_UNCHECKED T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  return atomic_change(object, [](T old) MSL_UNCHECKED { return old; }, sim::AtomicUse::kLoad);
}

template <class T>
MSL_UNCHECKED void atomic_store_explicit(volatile atomic<T>* object, std::type_identity_t<T> value,
                                         memory_order) {
  atomic_change(object, [value](T) MSL_UNCHECKED { return value; }, sim::AtomicUse::kStore);
}

template <class T>
MSL_UNCHECKED T atomic_exchange_explicit(volatile atomic<T>* object, std::type_identity_t<T> value,
                                         memory_order) {
  return atomic_change(object, [value](T) MSL_UNCHECKED { return value; });
}

template <class T>
MSL_UNCHECKED bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected,
                                                         std::type_identity_t<T> desired,
                                                         memory_order, memory_order) {
  const T wanted = *expected;
  const auto change = [=](T old) MSL_UNCHECKED { return old == wanted ? desired : old; };
  *expected = atomic_change(object, change);
  return *expected == wanted;
}

struct Subtract {
  template <class T>
  MSL_UNCHECKED T operator()(T a, T b) const {
    return T(a - b);
  }
};

#define MSL_FETCH(name, Combine)                                                                \
  template <class T>                                                                            \
  MSL_UNCHECKED T atomic_fetch_##name##_explicit(volatile atomic<T>* object,                    \
                                                 std::type_identity_t<T> value, memory_order) { \
    return atomic_change(object,                                                                \
                         [value](T old) MSL_UNCHECKED { return T(Combine()(old, value)); });    \
  }
MSL_FETCH(add, Add)
MSL_FETCH(sub, Subtract)
MSL_FETCH(and, And)
MSL_FETCH(or, Or)
MSL_FETCH(xor, Xor)
MSL_FETCH(max, Larger)
MSL_FETCH(min, Smaller)
#undef MSL_FETCH

#endif

}  // namespace metal
