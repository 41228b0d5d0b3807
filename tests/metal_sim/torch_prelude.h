// SPDX-License-Identifier: MIT
// What torch's attention kernels expect to have been included, without the rest of its utilities.
#include <c10/metal/common.h>

#include <metal_stdlib>
using namespace metal;

namespace c10 {
namespace metal {
/// Scores and sums are in float whatever the inputs are.
template <typename T>
using accum_t = float;
}  // namespace metal
}  // namespace c10
