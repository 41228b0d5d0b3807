// SPDX-License-Identifier: MIT
#include "flash_example.h"

#define INSTANTIATE(name, ...) \
  template [[host_name(        \
      name)]] [[kernel]] decltype(flash_example<__VA_ARGS__>) flash_example<__VA_ARGS__>;

INSTANTIATE("flash_example_float", float)
INSTANTIATE("flash_example_half", half)
INSTANTIATE("flash_example_bfloat", bfloat)
INSTANTIATE("flash_example_float_without_barrier_1", float, 1)
INSTANTIATE("flash_example_float_without_barrier_2", float, 2)
INSTANTIATE("flash_example_float_without_barrier_3", float, 3)
INSTANTIATE("flash_example_float_without_barrier_4", float, 4)
