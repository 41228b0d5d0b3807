// SPDX-License-Identifier: MIT
#include "matrix.h"

namespace sim {
namespace {

constexpr int kSide = 8;
using Matrix = float[kSide][kSide];

void multiply_accumulate(const Matrix& a, const Matrix& b, Matrix& c) {
  for (int row = 0; row < kSide; row++)
    for (int i = 0; i < kSide; i++)
      for (int column = 0; column < kSide; column++) c[row][column] += a[row][i] * b[i][column];
}

void apply(void* const* lanes) {
  Matrix a, b, c;
  for (unsigned lane = 0; lane < kSimdWidth; lane++) {
    const auto& fragments = *static_cast<const Fragments*>(lanes[lane]);
    const FragmentPlace place = fragment_place(lane);
    for (int i = 0; i < 2; i++) {
      a[place.row][place.column + i] = fragments.a[i];
      b[place.row][place.column + i] = fragments.b[i];
      c[place.row][place.column + i] = fragments.c[i];
    }
  }
  multiply_accumulate(a, b, c);
  for (unsigned lane = 0; lane < kSimdWidth; lane++) {
    auto& fragments = *static_cast<Fragments*>(lanes[lane]);
    const FragmentPlace place = fragment_place(lane);
    for (int i = 0; i < 2; i++) fragments.c[i] = c[place.row][place.column + i];
  }
}

}  // namespace

void multiply_matrices(Fragments& fragments, Site site) {
  collective(Stop::kMatrixMultiply, site, &fragments, apply);
}

}  // namespace sim
