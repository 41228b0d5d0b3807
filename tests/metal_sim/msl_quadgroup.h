// SPDX-License-Identifier: MIT
// Collectives of four neighbouring lanes. All quads of a SIMD group must make them together, which
// is more than Metal asks for.
#pragma once
#include "msl_simdgroup.h"

namespace metal {

template <class T>
MSL_UNCHECKED T quad_shuffle(T value, ushort lane, MSL_SITE) {
  return take_from(value, (my_lane() & ~3) | (lane & 3), site);
}

template <class T>
MSL_UNCHECKED T quad_broadcast(T value, ushort lane, MSL_SITE) {
  return quad_shuffle(value, lane, site);
}

template <class T>
MSL_UNCHECKED T quad_shuffle_xor(T value, ushort mask, MSL_SITE) {
  return quad_shuffle(value, ushort(my_lane() ^ mask), site);
}

/// Lanes whose source lies outside the quad keep their own value.
template <class T>
MSL_UNCHECKED T quad_shuffle_down(T value, ushort delta, MSL_SITE) {
  const int source = my_lane() % 4 + delta;
  return quad_shuffle(value, ushort(source < 4 ? source : my_lane()), site);
}

template <class T>
MSL_UNCHECKED T quad_shuffle_up(T value, ushort delta, MSL_SITE) {
  const int source = my_lane() % 4 - delta;
  return quad_shuffle(value, ushort(source >= 0 ? source : my_lane()), site);
}

#define MSL_QUAD(name, Combine)                                 \
  template <class T>                                            \
  MSL_UNCHECKED T name(T value, MSL_SITE) {                     \
    value = Combine()(value, quad_shuffle_xor(value, 1, site)); \
    return Combine()(value, quad_shuffle_xor(value, 2, site));  \
  }
MSL_QUAD(quad_sum, Add)
MSL_QUAD(quad_product, Multiply)
MSL_QUAD(quad_and, And)
MSL_QUAD(quad_or, Or)
MSL_QUAD(quad_xor, Xor)
MSL_QUAD(quad_max, Larger)
MSL_QUAD(quad_min, Smaller)
#undef MSL_QUAD

MSL_UNCHECKED inline bool quad_all(bool value, MSL_SITE) { return quad_and(int(value), site); }

MSL_UNCHECKED inline bool quad_any(bool value, MSL_SITE) { return quad_or(int(value), site); }

/// What the four lanes of a quad voted, the first lane in the lowest bit.
class quad_vote {
 public:
  typedef uint vote_t;

  constexpr explicit quad_vote(vote_t votes = 0) : votes_(votes) {}

  constexpr explicit operator vote_t() const { return votes_; }

  constexpr bool all() const { return votes_ == 0xF; }

  constexpr bool any() const { return votes_ != 0; }

 private:
  vote_t votes_;
};

MSL_UNCHECKED inline quad_vote quad_ballot(bool value, MSL_SITE) {
  return quad_vote(quad_or(uint(value) << my_lane() % 4, site));
}

}  // namespace metal
