// SPDX-License-Identifier: MIT
// What MLX's attention kernels expect to have been included, without the rest of its utilities.
#include <metal_stdlib>
using namespace metal;

typedef bfloat bfloat16_t;
typedef half float16_t;

template <typename T>
struct Limits {
  static constexpr T max = numeric_limits<T>::infinity();
  static constexpr T min = T(-max);
  static constexpr T finite_max = numeric_limits<T>::max();
  static constexpr T finite_min = T(-finite_max);
};
