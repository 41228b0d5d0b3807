// SPDX-License-Identifier: MIT
#pragma once

// A specialization whose sizes and features are looked up while it runs. On a GPU each plan has a
// kernel compiled for it; compiling some thousand of them for the conformance cases would take
// hours. The kernels' text is the same. A few plans run as compiled specializations too, to show
// that those are equal.

#include "sdpa/metal/kernels/bias_gradients.h"
#include "sdpa/metal/kernels/classify.h"
#include "sdpa/metal/kernels/decode.h"
#include "sdpa/metal/kernels/delta.h"
#include "sdpa/metal/kernels/keep.h"
#include "sdpa/metal/kernels/proto.h"
#include "tests/metal_kernels/spec_values.h"

namespace sdpa {

template <typename T>
struct AnySpec {
  typedef T Element;

  enum {
    kOutQk = 32,
    kOutV = 32,
    kTile = 4,
    kCachedQuery = kMaxCachedWithResult,
    kCachedQk = kMaxCached,
    kCachedV = kMaxCached,
    kStagedElements = 32768 / sizeof(T),
  };

  static METAL_FUNC int qk() { return spec_values.qk; }

  static METAL_FUNC int v() { return spec_values.v; }

  static METAL_FUNC int query_limit() {
    return max(int(kMaxCached), kMaxCachedWithResult - out_v());
  }

  static METAL_FUNC int chunks() { return spec_values.chunks; }

  static METAL_FUNC int out_qk() { return (qk() + chunks() - 1) / chunks(); }

  static METAL_FUNC int out_v() { return (v() + chunks() - 1) / chunks(); }

  static METAL_FUNC int tile() { return spec_values.tile; }

  static METAL_FUNC int groups() { return spec_values.groups; }

  static METAL_FUNC bool has(int feature) { return (spec_values.features & feature) != 0; }

  static METAL_FUNC int mask_kind() { return spec_values.features & kMaskKindBits; }
};

}  // namespace sdpa
