// SPDX-License-Identifier: MIT
// The last piece of every library: a plan appends one line of this form for each kernel it needs.
#define SDPA_INSTANTIATE(name, function, ...) \
  template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;
