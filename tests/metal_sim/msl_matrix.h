// SPDX-License-Identifier: MIT
// simdgroup_matrix: 8 x 8 elements spread over the 32 lanes of a SIMD group.
//
// Lane l holds two elements of one row: row l/16*4 + l/2%4, columns c and c+1 with
// c = l/8%2*4 + l%2*2. The layout is not documented by Apple; it is the one that published kernels
// which look into thread_elements() rely on.
#pragma once
#include "lane.h"
#include "matrix.h"
#include "msl_simdgroup.h"

namespace metal {

template <class T, int Columns = 8, int Rows = 8>
class simdgroup_matrix {
 public:
  static_assert(Columns == 8 && Rows == 8, "Metal has 8 x 8 matrices only");

  /// Not a number until something is stored, as a register may hold anything.
  simdgroup_matrix() : elements_(numeric_limits<T>::quiet_NaN()) {}

  /// A diagonal matrix.
  MSL_UNCHECKED explicit simdgroup_matrix(T diagonal) {
    const auto place = sim::fragment_place(unsigned(my_lane()));
    for (int i = 0; i < 2; i++) elements_[i] = place.row == place.column + i ? diagonal : T(0);
  }

  vec<T, 2>& thread_elements() { return elements_; }

  const vec<T, 2>& thread_elements() const { return elements_; }

 private:
  vec<T, 2> elements_;
};

/// A matrix's two elements, for code that goes unchecked and must call nothing that is checked.
template <class T>
MSL_UNCHECKED inline T* raw_elements(simdgroup_matrix<T>& matrix) {
  return reinterpret_cast<T*>(&matrix);
}

template <class T>
MSL_UNCHECKED inline const T* raw_elements(const simdgroup_matrix<T>& matrix) {
  return reinterpret_cast<const T*>(&matrix);
}

template <class T>
MSL_UNCHECKED inline float widen(const T& value) {
  if constexpr (std::is_same_v<T, bfloat>)
    return std::bit_cast<float>(uint32_t(std::bit_cast<uint16_t>(value)) << 16);
  else
    return float(value);
}

typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat> simdgroup_bfloat8x8;

template <class T, int Columns = 8, int Rows = 8>
simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> result;
  result.thread_elements() = vec<T, 2>(value);
  return result;
}

/// d = a b + c, in float, rounded once to d's type.
template <class D, class A, class B, class C>
MSL_UNCHECKED void simdgroup_multiply_accumulate(simdgroup_matrix<D>& d,
                                                 const simdgroup_matrix<A>& a,
                                                 const simdgroup_matrix<B>& b,
                                                 const simdgroup_matrix<C>& c, MSL_SITE) {
  sim::Fragments fragments;
  for (int i = 0; i < 2; i++) {
    fragments.a[i] = widen(raw_elements(a)[i]);
    fragments.b[i] = widen(raw_elements(b)[i]);
    fragments.c[i] = widen(raw_elements(c)[i]);
  }
  sim::multiply_matrices(fragments, site);
  for (int i = 0; i < 2; i++) raw_elements(d)[i] = D(fragments.c[i]);
}

template <class D, class A, class B>
MSL_UNCHECKED void simdgroup_multiply(simdgroup_matrix<D>& d, const simdgroup_matrix<A>& a,
                                      const simdgroup_matrix<B>& b, MSL_SITE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float>(0), site);
}

#ifndef MSL_SPACES  // there, msl_spaces.h declares them

/// What simdgroup_load and simdgroup_store are asked for: of all lanes the same.
struct MatrixPlace {
  const volatile void* memory;
  ulong elements_per_row;
  vec<ulong, 2> origin;
  bool transpose;
  bool is_agreed = true;

  MSL_UNCHECKED bool agrees(const MatrixPlace& other) const {
    return memory == other.memory && elements_per_row == other.elements_per_row &&
           origin.x == other.origin.x && origin.y == other.origin.y && transpose == other.transpose;
  }
};

/// Where the two elements of the running lane lie, counted from the matrix's first.
struct FragmentOffsets {
  ptrdiff_t first, step;

  MSL_UNCHECKED explicit FragmentOffsets(const MatrixPlace& matrix) {
    const auto place = sim::fragment_place(unsigned(my_lane()));
    const auto row_length = ptrdiff_t(matrix.elements_per_row);
    const ptrdiff_t row = matrix.transpose ? place.column : place.row;
    const ptrdiff_t column = matrix.transpose ? place.row : place.column;
    first = (ptrdiff_t(matrix.origin.y) + row) * row_length + ptrdiff_t(matrix.origin.x) + column;
    step = matrix.transpose ? row_length : 1;
  }
};

/// All lanes meet, and must ask for the same matrix. This orders no memory.
MSL_UNCHECKED inline void meet_at_matrix(sim::Stop stop, MatrixPlace& place, sim::Site site) {
  sim::collective(stop, site, &place, [](void* const* lanes) MSL_UNCHECKED {
    const auto& first = *static_cast<const MatrixPlace*>(lanes[0]);
    for (int i = 1; i < sim::kSimdWidth && lanes[i]; i++) {
      auto* mine = static_cast<MatrixPlace*>(lanes[i]);
      mine->is_agreed = first.agrees(*mine);
    }
  });
  sim::require(place.is_agreed,
               "a matrix that is another than that of the SIMD group's first lane");
}

template <class T>
MSL_UNCHECKED void simdgroup_load(simdgroup_matrix<T>& matrix, const T* source,
                                  ulong elements_per_row = 8, vec<ulong, 2> origin = 0,
                                  bool transpose = false, MSL_SITE) {
  MatrixPlace place{source, elements_per_row, origin, transpose};
  meet_at_matrix(sim::Stop::kMatrixLoad, place, site);
  const FragmentOffsets offsets(place);
  const T* first = source + offsets.first;
  if (offsets.step == 1) {
    sim::check_load(first, 2 * sizeof(T));
  } else {
    sim::check_load(first, sizeof(T));
    sim::check_load(first + offsets.step, sizeof(T));
  }
  raw_elements(matrix)[0] = first[0];
  raw_elements(matrix)[1] = first[offsets.step];
}

template <class T>
MSL_UNCHECKED void simdgroup_store(const simdgroup_matrix<T>& matrix, T* target,
                                   ulong elements_per_row = 8, vec<ulong, 2> origin = 0,
                                   bool transpose = false, MSL_SITE) {
  MatrixPlace place{target, elements_per_row, origin, transpose};
  meet_at_matrix(sim::Stop::kMatrixStore, place, site);
  const FragmentOffsets offsets(place);
  T* first = target + offsets.first;
  if (offsets.step == 1) {
    sim::check_store(first, 2 * sizeof(T));
  } else {
    sim::check_store(first, sizeof(T));
    sim::check_store(first + offsets.step, sizeof(T));
  }
  first[0] = raw_elements(matrix)[0];
  first[offsets.step] = raw_elements(matrix)[1];
}

#endif

}  // namespace metal
