// SPDX-License-Identifier: MIT
// The shapes of MLX's tiled attention that we run: block sizes as MLX chooses them.
#define INSTANTIATE(type, keys, dim, columns, mask)                                         \
  template [[host_name("steel_" #type "_d" #dim "_wn" #columns "_mask_" #mask)]] [[kernel]] \
  decltype(attention<type, 32, keys, dim, dim, 4, columns, mask, float>)                    \
      attention<type, 32, keys, dim, dim, 4, columns, mask, float>;

INSTANTIATE(float, 32, 64, 1, bool)
INSTANTIATE(half, 32, 64, 1, bool)
INSTANTIATE(bfloat, 32, 64, 1, bool)
INSTANTIATE(half, 32, 64, 1, half)
INSTANTIATE(half, 16, 128, 1, bool)
INSTANTIATE(bfloat, 16, 128, 1, bool)
INSTANTIATE(bfloat, 32, 96, 1, bool)
INSTANTIATE(float, 32, 64, 2, bool)
