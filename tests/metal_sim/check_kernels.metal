// SPDX-License-Identifier: MIT
#include "check_kernels.h"

#define INSTANTIATE(name, function, flags)                                                      \
  template [[host_name(name "_" #flags)]] [[kernel]] decltype(function<mem_flags::mem_##flags>) \
      function<mem_flags::mem_##flags>;

INSTANTIATE("exchange_in_threadgroup", exchange_in_threadgroup, none)
INSTANTIATE("exchange_in_threadgroup", exchange_in_threadgroup, device)
INSTANTIATE("exchange_in_threadgroup", exchange_in_threadgroup, threadgroup)
INSTANTIATE("exchange_in_simdgroup", exchange_in_simdgroup, none)
INSTANTIATE("exchange_in_simdgroup", exchange_in_simdgroup, threadgroup)
INSTANTIATE("exchange_in_device", exchange_in_device, threadgroup)
INSTANTIATE("exchange_in_device", exchange_in_device, device)
