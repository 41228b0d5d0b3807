// SPDX-License-Identifier: MIT
#pragma once

// What a kernel may ask of an instruction set, and the functions written once on top of it.
//
// An instruction set is a struct S of static functions, defined in simd_<name>.h inside an
// ANONYMOUS namespace and included by the one translation unit that is compiled with its flags.
// Every template instantiated with S therefore has internal linkage: the linker can never pick a
// function that was compiled for one set where another runs. For the same reason kernels call no
// inline function of the standard library that a compiler might leave out of line
// (tests/cpu_symbols_test.sh looks at the objects).
//
// S offers, all on vectors of kLanes floats or 32-bit words:
//
//   Vec, Words, Mask      registers; a Mask is a predicate a lane
//   kLanes                floats in a Vec
//   kRows, kColumns       the register tile: kRows broadcast rows times kColumns vectors of lanes
//   kLooksUpPowers        whether power_of_32nds, beyond_32nds and limit exist
//   kHasBFloat16Dot       whether Pairs exist: multiply_add(Pairs, Pairs, Vec), pack_pairs and
//                         load_pairs load_pairs_part store_rounded interleave
//                         order_as_columns round_to_bfloat16
//   Halves                optional, where there are no Pairs: load_pairs and load_pairs_part give
//                         even and odd elements; multiply_add(Halves, Halves, Vec) join_halves
//   zero broadcast load store load_part store_part     float, Float16 or BFloat16 in memory
//   add sub mul div min max round multiply_add scale_by_power
//   greater not_less is_finite any to_bits select keep both    predicates; `greater` is false
//          on NaN
//   words: load_words store_words as_words broadcast_word word_and word_or word_xor word_add
//          test not_below multiply_wide or_where byte_bits
//   transpose sum_rows    of kLanes vectors of kLanes, in registers

#include <cstddef>
#include <cstdint>
#include <utility>

#include "sdpa/dtype.h"

/// Kernels are written as many small steps that must share one set of registers.
#define SDPA_INLINE __attribute__((always_inline)) inline
#define SDPA_INLINE_LAMBDA __attribute__((always_inline))

namespace sdpa::cpu {

/// Two neighbouring 16-bit elements as one broadcastable word.
struct BFloat16Pair {
  std::uint32_t bits;
};

constexpr double kExactLog2E = 1.44269504088896340736;
constexpr float kLog2E = static_cast<float>(kExactLog2E);
constexpr double kExactLn2 = 0.69314718055994530942;
constexpr float kLn2 = static_cast<float>(kExactLn2);

/// The widest vector of any instruction set, in floats.
constexpr int kMaxLanes = 16;

template <int... Indices, typename Function>
SDPA_INLINE constexpr void unroll_over(std::integer_sequence<int, Indices...>,
                                       Function&& function) {
  (function(std::integral_constant<int, Indices>{}), ...);
}

/// Calls `function(i)` for i in [0, Count) with i a constant, so that arrays of vectors become
/// registers.
template <int Count, typename Function>
SDPA_INLINE constexpr void unroll(Function&& function) {
  unroll_over(std::make_integer_sequence<int, Count>{}, function);
}

/// What a probability is kept as. kExact: a float, by a polynomial whose error is far below its
/// rounding; for few rows, whose exponentials cost nothing beside reading the keys.
enum class Rounding : std::uint8_t { kExact, kFloat, kTo16Bits };

/// 2^t = 2^n 2^r with n the nearest multiple of 1/32, whose power is looked up, and a minimax
/// polynomial for 2^r that is exact at 0: relative error 1.3e-10, 5.3e-8 or 5.9e-5 with three, two
/// or one term. A vector takes the multipliers for three operations where the polynomial alone
/// takes them for seven.
template <class S, Rounding kRounding>
SDPA_INLINE typename S::Vec exp2_by_table(typename S::Vec t) {
  const auto power = S::power_of_32nds(S::limit(t, S::broadcast(127.0f)));
  const auto r = S::beyond_32nds(t);
  auto rise = S::broadcast(0.69312008f);
  if constexpr (kRounding == Rounding::kFloat)
    rise = S::multiply_add(r, S::broadcast(0.2402265f), S::broadcast(0.69315733f));
  if constexpr (kRounding == Rounding::kExact) {
    rise = S::multiply_add(r, S::broadcast(0.0555045679f), S::broadcast(0.240228459f));
    rise = S::multiply_add(r, rise, S::broadcast(0.693147182f));
  }
  return S::multiply_add(power, S::mul(rise, r), power);
}

/// 2^t = 2^n 2^f with n whole and f in [-1/2, 1/2], and a minimax polynomial for 2^f: relative
/// error 1.6e-8 for degree 6 and 1.1e-7 for degree 5, both exact at 0; 7.5e-5 for degree 3.
template <class S, Rounding kRounding>
SDPA_INLINE typename S::Vec exp2_by_polynomial(typename S::Vec t) {
  const auto n = S::round(t);
  const auto f = S::sub(t, n);
  typename S::Vec p;
  if constexpr (kRounding == Rounding::kExact) {
    p = S::multiply_add(S::broadcast(0.000153458124f), f, S::broadcast(0.00133999309f));
    p = S::multiply_add(p, f, S::broadcast(0.00961848907f));
    p = S::multiply_add(p, f, S::broadcast(0.0555032864f));
    p = S::multiply_add(p, f, S::broadcast(0.240226462f));
    p = S::multiply_add(p, f, S::broadcast(0.693147182f));
    p = S::multiply_add(p, f, S::broadcast(1.0f));
  } else if constexpr (kRounding == Rounding::kFloat) {
    p = S::multiply_add(S::broadcast(0.00132647273f), f, S::broadcast(0.00967151299f));
    p = S::multiply_add(p, f, S::broadcast(0.0555073358f));
    p = S::multiply_add(p, f, S::broadcast(0.240222424f));
    p = S::multiply_add(p, f, S::broadcast(0.693147004f));
    p = S::multiply_add(p, f, S::broadcast(1.0f));
  } else {
    p = S::multiply_add(S::broadcast(0.0551716691f), f, S::broadcast(0.242611122f));
    p = S::multiply_add(p, f, S::broadcast(0.693260985f));
    p = S::multiply_add(p, f, S::broadcast(0.999928074f));
  }
  return S::keep(S::not_less(t, S::broadcast(-126.0f)), S::scale_by_power(p, n));
}

/// 2^t; huge, infinite or NaN from 127 on; less than 2^-126, mostly 0, where the result would be
/// subnormal, and 0 at -infinity; NaN stays NaN.
template <class S, Rounding kRounding = Rounding::kFloat>
SDPA_INLINE typename S::Vec exp2(typename S::Vec t) {
  if constexpr (S::kLooksUpPowers)
    return exp2_by_table<S, kRounding>(t);
  else
    return exp2_by_polynomial<S, kRounding>(t);
}

/// tanh(x) = (e - 1) / (e + 1) with e = 2^(2 x log2 e), by way of e - 1 so that small x lose
/// nothing to cancellation: e - 1 = 2^n (2^f - 1) + (2^n - 1).
template <class S>
SDPA_INLINE typename S::Vec tanh(typename S::Vec x) {
  const auto t = S::mul(S::max(S::broadcast(-9.5f), S::min(S::broadcast(9.5f), x)),
                        S::broadcast(2 * kLog2E));  // beyond 9.5 the result rounds to +-1
  const auto n = S::round(t);
  const auto f = S::sub(t, n);
  auto p = S::multiply_add(S::broadcast(0.000154035123f), f, S::broadcast(0.00133907355f));
  p = S::multiply_add(p, f, S::broadcast(0.00961823750f));
  p = S::multiply_add(p, f, S::broadcast(0.0555035744f));
  p = S::multiply_add(p, f, S::broadcast(0.240226498f));
  p = S::multiply_add(p, f, S::broadcast(0.693147188f));
  const auto power = S::scale_by_power(S::broadcast(1.0f), n);
  const auto one = S::broadcast(1.0f);
  const auto less_one = S::multiply_add(S::mul(p, f), power, S::sub(power, one));
  return S::div(less_one, S::add(less_one, S::broadcast(2.0f)));
}

/// Four vectors of random words: one Philox block (see sdpa/dropout.h) a lane, for the lanes'
/// queries and heads and one group of four keys. Equal to `philox` bit for bit.
template <class S>
struct PhiloxWords {
  typename S::Words word[4];
};

template <class S>
SDPA_INLINE PhiloxWords<S> philox(typename S::Words x, typename S::Words y, typename S::Words z,
                                  typename S::Words w, std::uint32_t key_low,
                                  std::uint32_t key_high) {
  unroll<10>([&](auto) SDPA_INLINE_LAMBDA {
    typename S::Words first_low, first_high, second_low, second_high;
    S::multiply_wide(x, 0xD2511F53u, first_low, first_high);
    S::multiply_wide(z, 0xCD9E8D57u, second_low, second_high);
    x = S::word_xor(S::word_xor(second_high, y), S::broadcast_word(key_low));
    z = S::word_xor(S::word_xor(first_high, w), S::broadcast_word(key_high));
    y = second_low;
    w = first_low;
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  });
  return {{x, y, z, w}};
}

}  // namespace sdpa::cpu
