// SPDX-License-Identifier: MIT
// The shapes of torch's attention kernels that we run.
#define NAMED(name, function, ...) \
  template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;
#define PREFILL(name, type, rows, keys, dim, groups, has_mask, causal, mask)                     \
  NAMED("prefill_" name "_" #type "_" #dim, prefill_attention, type, rows, keys, dim, groups, 1, \
        has_mask, causal, mask)
#define DECODE(type, dim)                                                                \
  NAMED("decode_" #type "_" #dim, sdpa_vector, type, dim)                                \
  NAMED("decode_causal_" #type "_" #dim, sdpa_vector, type, dim, dim, true)              \
  NAMED("decode_masked_" #type "_" #dim, sdpa_vector, type, dim, dim, false, true, bool) \
  NAMED("decode_first_" #type "_" #dim, sdpa_vector_2pass_1, type, dim)                  \
  NAMED("decode_second_" #type "_" #dim, sdpa_vector_2pass_2, type, dim)

PREFILL("dense", float, 32, 32, 64, 4, false, false, float)
PREFILL("dense", half, 32, 16, 128, 4, false, false, half)
PREFILL("dense", bfloat, 32, 32, 64, 4, false, false, bfloat)
PREFILL("dense", bfloat, 32, 16, 128, 4, false, false, bfloat)
PREFILL("causal", bfloat, 32, 16, 128, 4, false, true, bfloat)
PREFILL("causal", bfloat, 32, 32, 64, 4, false, true, bfloat)
PREFILL("masked", half, 32, 32, 64, 4, true, false, bool)
PREFILL("added", float, 16, 8, 256, 2, true, true, float)
DECODE(float, 64)
DECODE(bfloat, 128)
