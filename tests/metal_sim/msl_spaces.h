// SPDX-License-Identifier: MIT
// Declarations for checking types with real address spaces: what msl_matrix.h and msl_simdgroup.h
// define for plain pointers. Nothing of it is ever linked.
#pragma once
#include "msl_atomic.h"
#include "msl_matrix.h"

#define MSL_IN(space) __attribute__((address_space(space)))

namespace metal {

#define MSL_MATRIX_MEMORY(space)                                                   \
  template <class T>                                                               \
  void simdgroup_load(simdgroup_matrix<T>& matrix, const MSL_IN(space) T* source,  \
                      ulong elements_per_row = 8, vec<ulong, 2> origin = 0,        \
                      bool transpose = false);                                     \
  template <class T>                                                               \
  void simdgroup_store(const simdgroup_matrix<T>& matrix, MSL_IN(space) T* target, \
                       ulong elements_per_row = 8, vec<ulong, 2> origin = 0,       \
                       bool transpose = false);
MSL_MATRIX_MEMORY(1)
MSL_MATRIX_MEMORY(3)
#undef MSL_MATRIX_MEMORY

#define MSL_FETCH(name, space)                                         \
  template <class T>                                                   \
  T atomic_##name##_explicit(MSL_IN(space) volatile atomic<T>* object, \
                             std::type_identity_t<T> value, memory_order);
#define MSL_ATOMICS(space)                                                                 \
  template <class T>                                                                       \
  T atomic_load_explicit(const MSL_IN(space) volatile atomic<T>* object, memory_order);    \
  template <class T>                                                                       \
  void atomic_store_explicit(MSL_IN(space) volatile atomic<T>* object,                     \
                             std::type_identity_t<T> value, memory_order);                 \
  template <class T>                                                                       \
  bool atomic_compare_exchange_weak_explicit(MSL_IN(space) volatile atomic<T>* object,     \
                                             T* expected, std::type_identity_t<T> desired, \
                                             memory_order, memory_order);                  \
  MSL_FETCH(exchange, space)                                                               \
  MSL_FETCH(fetch_add, space)                                                              \
  MSL_FETCH(fetch_sub, space)                                                              \
  MSL_FETCH(fetch_and, space)                                                              \
  MSL_FETCH(fetch_or, space)                                                               \
  MSL_FETCH(fetch_xor, space)                                                              \
  MSL_FETCH(fetch_max, space)                                                              \
  MSL_FETCH(fetch_min, space)
MSL_ATOMICS(1)
MSL_ATOMICS(3)
#undef MSL_ATOMICS
#undef MSL_FETCH

template <class T>
bool is_function_constant_defined(const MSL_IN(2) T& constant_variable);

}  // namespace metal

#undef MSL_IN
