// SPDX-License-Identifier: MIT
// The matrix instruction: how an 8 x 8 matrix lies over 32 lanes, and the product.
#pragma once
#include "lane.h"

namespace sim {

struct FragmentPlace {
  int row, column;  // of a lane's first element; the second is one column further
};

constexpr FragmentPlace fragment_place(unsigned lane) {
  return {int(lane / 16 * 4 + lane / 2 % 4), int(lane / 8 % 2 * 4 + lane % 2 * 2)};
}

/// One lane's share of the operands.
struct Fragments {
  float a[2], b[2], c[2];
};

/// A collective: afterwards `c` holds the lane's share of a b + c.
void multiply_matrices(Fragments& fragments, Site site);

}  // namespace sim
