// SPDX-License-Identifier: MIT
// One dtype: a mistake shows in it as in the others, and compiling takes a third.
#define SDPA_INSTANTIATE(name, function, ...) \
  template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;
#define ANY_FLOAT(function) \
  SDPA_INSTANTIATE("any_" #function "_float", sdpa::function, sdpa::AnySpec<float>)

ANY_FLOAT(forward)
ANY_FLOAT(classify)
ANY_FLOAT(split_keys)
ANY_FLOAT(merge)
ANY_FLOAT(delta_of_rows)
ANY_FLOAT(delta_of_scores)
ANY_FLOAT(grad_query)
ANY_FLOAT(grad_key_value)
ANY_FLOAT(grad_mask)
ANY_FLOAT(grad_sinks)
ANY_FLOAT(proto)
