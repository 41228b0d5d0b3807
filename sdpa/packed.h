// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "sdpa/attention.h"

namespace sdpa {

/// Sequences laid end to end. Sequence n has the queries [query_starts[n], query_starts[n + 1]) and
/// the keys [key_starts[n], key_starts[n + 1]); both lists rise from 0 to the total length.
struct Packing {
  std::vector<std::int64_t> query_starts, key_starts;
};

/// forward() of every sequence by itself, without padding. Tensors are [heads, total, dim] and
/// `lse` [heads, total, 1]; key and value have the same heads, and there is no mask. The offset of
/// dropout rises by one a sequence. Thresholds are not asked: the framework has no function of this
/// kind to compare with.
Choice forward_packed(const ForwardTensors& tensors, const Packing& packing,
                      const Attributes& attributes, const Request& request = {});

/// backward() of every sequence.
Choice backward_packed(const BackwardTensors& tensors, const Packing& packing,
                       const Attributes& attributes, const Request& request = {});

}  // namespace sdpa
