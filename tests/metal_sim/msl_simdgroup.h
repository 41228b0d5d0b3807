// SPDX-License-Identifier: MIT
// Barriers, shuffles and reductions: where a lane stops and waits for its SIMD group.
//
// Every function takes its call site as a last, defaulted argument, so that lanes which stop at
// different places are told apart.
#pragma once
#include "lane.h"
#include "msl_math.h"

#define MSL_SITE sim::Site site = sim::Site::current()

namespace metal {

#ifndef MSL_SPACES  // there, msl_spaces.h declares it
template <class T>
bool is_function_constant_defined(const T& constant_variable) {
  return sim::is_constant_defined(&constant_variable);
}
#endif

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };

constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }

inline void threadgroup_barrier(mem_flags flags, MSL_SITE) {
  sim::collective(sim::Stop::kThreadgroupBarrier, site, nullptr, nullptr, uint8_t(flags));
}

inline void simdgroup_barrier(mem_flags flags, MSL_SITE) {
  sim::collective(sim::Stop::kSimdgroupBarrier, site, nullptr, nullptr, uint8_t(flags));
}

/// Combines one value of each lane. Halves are folded onto each other, which is as good a guess at
/// the order of a sum as any.
template <class T, class Combine>
MSL_UNCHECKED T fold_lanes(T value, Combine, sim::Site site) {
  sim::collective(sim::Stop::kReduction, site, &value, [](void* const* lanes) MSL_UNCHECKED {
    T values[sim::kSimdWidth];
    int count = 0;
    while (count < sim::kSimdWidth && lanes[count]) {
      values[count] = *static_cast<T*>(lanes[count]);
      count++;
    }
    for (int half_width = sim::kSimdWidth / 2; half_width; half_width /= 2)
      for (int i = 0; i < half_width && i + half_width < count; i++)
        values[i] = Combine()(values[i], values[i + half_width]);
    for (int i = 0; i < count; i++) *static_cast<T*>(lanes[i]) = values[0];
  });
  return value;
}

struct Add {
  template <class T>
  MSL_UNCHECKED T operator()(T a, T b) const {
    return T(a + b);
  }
};

struct Multiply {
  template <class T>
  MSL_UNCHECKED T operator()(T a, T b) const {
    return T(a * b);
  }
};

struct Or {
  template <class T>
  MSL_UNCHECKED T operator()(T a, T b) const {
    return T(a | b);
  }
};

struct And {
  template <class T>
  MSL_UNCHECKED T operator()(T a, T b) const {
    return T(a & b);
  }
};

struct Xor {
  template <class T>
  MSL_UNCHECKED T operator()(T a, T b) const {
    return T(a ^ b);
  }
};

struct Larger {
  template <class T>
  MSL_UNCHECKED T operator()(T a, T b) const {
    return max(a, b);
  }
};

struct Smaller {
  template <class T>
  MSL_UNCHECKED T operator()(T a, T b) const {
    return min(a, b);
  }
};

template <class T>
MSL_UNCHECKED T simd_sum(T value, MSL_SITE) {
  return fold_lanes(value, Add(), site);
}

template <class T>
MSL_UNCHECKED T simd_product(T value, MSL_SITE) {
  return fold_lanes(value, Multiply(), site);
}

template <class T>
MSL_UNCHECKED T simd_or(T value, MSL_SITE) {
  return fold_lanes(value, Or(), site);
}

template <class T>
MSL_UNCHECKED T simd_and(T value, MSL_SITE) {
  return fold_lanes(value, And(), site);
}

template <class T>
MSL_UNCHECKED T simd_xor(T value, MSL_SITE) {
  return fold_lanes(value, Xor(), site);
}

template <class T>
MSL_UNCHECKED T simd_max(T value, MSL_SITE) {
  return fold_lanes(value, Larger(), site);
}

template <class T>
MSL_UNCHECKED T simd_min(T value, MSL_SITE) {
  return fold_lanes(value, Smaller(), site);
}

MSL_UNCHECKED inline bool simd_all(bool value, MSL_SITE) {
  return fold_lanes(int(value), Smaller(), site) != 0;
}

MSL_UNCHECKED inline bool simd_any(bool value, MSL_SITE) {
  return fold_lanes(int(value), Larger(), site) != 0;
}

/// What lane `source` handed over; a lane may not ask for one that is not there.
template <class T>
MSL_UNCHECKED T take_from(T value, int source, sim::Site site) {
  struct Exchange {
    T given, taken;
    int source;
  } exchange{value, value, source};

  sim::require_lane(source);
  sim::collective(sim::Stop::kShuffle, site, &exchange, [](void* const* lanes) MSL_UNCHECKED {
    for (int i = 0; i < sim::kSimdWidth && lanes[i]; i++) {
      auto* mine = static_cast<Exchange*>(lanes[i]);
      mine->taken = static_cast<Exchange*>(lanes[mine->source])->given;
    }
  });
  return exchange.taken;
}

MSL_UNCHECKED inline int my_lane() { return int(sim::current_lane->lane); }

template <class T>
MSL_UNCHECKED T simd_shuffle(T value, ushort lane, MSL_SITE) {
  return take_from(value, lane, site);
}

template <class T>
MSL_UNCHECKED T simd_broadcast(T value, ushort lane, MSL_SITE) {
  return take_from(value, lane, site);
}

template <class T>
MSL_UNCHECKED T simd_broadcast_first(T value, MSL_SITE) {
  return take_from(value, 0, site);
}

template <class T>
MSL_UNCHECKED T simd_shuffle_xor(T value, ushort mask, MSL_SITE) {
  return take_from(value, my_lane() ^ mask, site);
}

/// Lanes whose source lies past the end keep their own value.
template <class T>
MSL_UNCHECKED T simd_shuffle_down(T value, ushort delta, MSL_SITE) {
  const int source = my_lane() + delta;
  return take_from(value, source < sim::kSimdWidth ? source : my_lane(), site);
}

template <class T>
MSL_UNCHECKED T simd_shuffle_up(T value, ushort delta, MSL_SITE) {
  const int source = my_lane() - delta;
  return take_from(value, source >= 0 ? source : my_lane(), site);
}

/// Around the ends.
template <class T>
MSL_UNCHECKED T simd_shuffle_rotate_down(T value, ushort delta, MSL_SITE) {
  return take_from(value, (my_lane() + delta) % sim::kSimdWidth, site);
}

template <class T>
MSL_UNCHECKED T simd_shuffle_rotate_up(T value, ushort delta, MSL_SITE) {
  return take_from(value, (my_lane() - delta) & (sim::kSimdWidth - 1), site);
}

/// What the lanes of a SIMD group voted, lane 0 in the lowest bit.
class simd_vote {
 public:
  typedef uint64_t vote_t;

  constexpr explicit simd_vote(vote_t votes = 0) : votes_(votes) {}

  constexpr explicit operator vote_t() const { return votes_; }

  constexpr bool all() const { return votes_ == 0xFFFFFFFF; }

  constexpr bool any() const { return votes_ != 0; }

 private:
  vote_t votes_;
};

MSL_UNCHECKED inline simd_vote simd_ballot(bool value, MSL_SITE) {
  return simd_vote(fold_lanes(uint64_t(value) << my_lane(), Or(), site));
}

/// All lanes of a SIMD group that are there, since they must meet.
MSL_UNCHECKED inline simd_vote simd_active_threads_mask(MSL_SITE) {
  return simd_ballot(true, site);
}

MSL_UNCHECKED inline bool simd_is_first() { return my_lane() == 0; }

template <class T>
MSL_UNCHECKED T simd_prefix_inclusive_sum(T value, MSL_SITE) {
  sim::collective(sim::Stop::kReduction, site, &value, [](void* const* lanes) MSL_UNCHECKED {
    for (int i = 1; i < sim::kSimdWidth && lanes[i]; i++)
      *static_cast<T*>(lanes[i]) = T(*static_cast<T*>(lanes[i - 1]) + *static_cast<T*>(lanes[i]));
  });
  return value;
}

template <class T>
MSL_UNCHECKED T simd_prefix_exclusive_sum(T value, MSL_SITE) {
  return T(simd_prefix_inclusive_sum(value, site) - value);
}

}  // namespace metal
