// SPDX-License-Identifier: MIT
#include "sdpa/metal/kernels/instantiate.metal"

#define SDPA_INSTANTIATE(name, function, ...) \
  template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;
#define ANY_KERNEL(function, dtype) \
  SDPA_INSTANTIATE("any_" #function "_" #dtype, sdpa::function, sdpa::AnySpec<dtype>)
#define ANY_DTYPE(function)   \
  ANY_KERNEL(function, float) \
  ANY_KERNEL(function, half)  \
  ANY_KERNEL(function, bfloat)

ANY_DTYPE(forward)
ANY_DTYPE(classify)
ANY_DTYPE(split_keys)
ANY_DTYPE(merge)
ANY_DTYPE(delta_of_rows)
ANY_DTYPE(delta_of_scores)
ANY_DTYPE(grad_query)
ANY_DTYPE(grad_key_value)
ANY_DTYPE(grad_mask)
ANY_DTYPE(grad_sinks)
ANY_KERNEL(keep_pairs, float)
ANY_DTYPE(proto)
