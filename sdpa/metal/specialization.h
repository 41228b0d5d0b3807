// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>

#include "sdpa/dtype.h"
#include "sdpa/params.h"

namespace sdpa::metal {

/// The template arguments of a kernel; kernels/tile.h says what they mean. Sizes are in fragments
/// of 8.
struct Specialization {
  std::string kernel;  ///< the function: "forward", "grad_query", ...
  DType dtype = DType::kFloat32;
  int qk = 1;
  int v = 1;
  int chunks = 1;
  int tile = 4;
  int groups = 4;
  int features = 0;  ///< bits of Feature and the mask's ElementKind

  bool has(Feature feature) const { return (features & feature) != 0; }
};

/// "forward_half_q8_v8_c1_t4_g4_f137": unique, and the specialization can be read from it.
std::string host_name(const Specialization& spec);

/// The inverse of `host_name`. Throws std::invalid_argument for another text.
Specialization parse_host_name(const std::string& name);

/// The line of source that instantiates the kernel under its host name.
std::string instantiation(const Specialization& spec);

/// "band, softcap, mask float32": the features in words.
std::string describe_features(int features);

/// Bytes of static threadgroup memory of the kernel.
std::int64_t threadgroup_bytes(const Specialization& spec);

}  // namespace sdpa::metal
