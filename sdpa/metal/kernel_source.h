// SPDX-License-Identifier: MIT
#pragma once

namespace sdpa::metal {

/// The text of all kernels with their includes resolved, up to the line that instantiates one. It
/// is made from sdpa/metal/kernels when the library is built.
extern const char* const kKernelSource;

}  // namespace sdpa::metal
