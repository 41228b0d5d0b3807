// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <vector>

#include "sdpa/metal/gpu.h"

namespace sdpa::metal {

/// Brings the tensors of one call to where the GPU sees them, and the results back.
///
/// Memory that begins with a page is shared as it lies, at no cost. Everything else is packed into
/// a buffer: only the elements, so a view into a huge tensor costs no more than its own size.
/// Plans are made for the views given back here, which have the strides of where they lie now.
class Staging {
 public:
  explicit Staging(const Gpu& gpu) : gpu_(gpu) {}

  /// What a kernel does with a tensor.
  enum class Access { kRead, kWrite, kUpdate };

  /// The tensor as the GPU will see it; an absent one stays absent.
  TensorView stage(Role role, const TensorView& view, Access access);

  /// Memory of the plan's own.
  void allocate(const Scratch& scratch);

  /// The buffer of a role.
  const apple::Ref<apple::MTLBuffer>& buffer(Role role) const { return buffers_.at(role); }

  /// Copies results that were not shared to where they belong. The GPU has to be done.
  void finish() const;

 private:
  struct Result {
    Role role;
    TensorView packed;
    TensorView host;
  };

  TensorView pack(Role role, const TensorView& view, Access access);

  const Gpu& gpu_;
  std::map<Role, apple::Ref<apple::MTLBuffer>> buffers_;
  std::vector<Result> results_;
};

/// Copies elements between views of one shape, dtype and rank 4. Where the target repeats an
/// element (stride 0), it is written once.
void copy_elements(const TensorView& from, const TensorView& to);

}  // namespace sdpa::metal
