// SPDX-License-Identifier: MIT
// Declarations for checking types with real address spaces: what msl_matrix.h and msl_simdgroup.h
// define for plain pointers. Nothing of it is ever linked.
#pragma once
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

template <class T>
bool is_function_constant_defined(const MSL_IN(2) T& constant_variable);

}  // namespace metal

#undef MSL_IN
