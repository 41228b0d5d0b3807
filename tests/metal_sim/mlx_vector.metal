// SPDX-License-Identifier: MIT
// The shapes of MLX's attention for few queries that we run.
#define NAMED(name, function, ...) \
  template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;
#define INSTANTIATE(type, dim)                                                              \
  NAMED("vector_" #type "_" #dim, sdpa_vector, type, dim)                                   \
  NAMED("vector_first_" #type "_" #dim, sdpa_vector_2pass_1, type, dim)                     \
  NAMED("vector_first_of_8_" #type "_" #dim, sdpa_vector_2pass_1_gqa, type, dim, dim, 8, 4) \
  NAMED("vector_second_" #type "_" #dim, sdpa_vector_2pass_2, type, dim)

INSTANTIATE(float, 64)
INSTANTIATE(half, 128)
INSTANTIATE(bfloat, 128)
