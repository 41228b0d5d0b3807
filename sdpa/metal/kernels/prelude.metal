// SPDX-License-Identifier: MIT
// What the kernels need of Metal besides the language. Elsewhere a shim of metal_stdlib comes first
// and defines the same two macros.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

// Storage that the threads of a threadgroup share.
#define TG_ARRAY(T, name, dims) threadgroup T name dims

// For loops over arrays of fragments, which stay in registers only if every index is a constant.
#define SDPA_UNROLL _Pragma("clang loop unroll(full)")
