// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "sdpa/metal/objc.h"
#include "sdpa/metal/plan.h"

namespace sdpa::metal {

/// Sizes of memory that is shared with the GPU are multiples of this: a page of arm64 macOS.
inline constexpr std::size_t kPageBytes = 16384;

/// The system's GPU with a command queue of its own.
class Gpu {
 public:
  /// Throws apple::Error with the sentence that says why there is no GPU for our kernels: no
  /// Objective-C runtime, no Metal, an older macOS, no device, an older GPU, no queue.
  Gpu();

  const DeviceInfo& info() const { return info_; }

  const apple::Ref<apple::MTLDevice>& device() const { return device_; }

  const apple::Ref<apple::MTLCommandQueue>& queue() const { return queue_; }

  /// Fresh memory. Throws apple::Error where there is not enough.
  apple::Ref<apple::MTLBuffer> allocate(std::size_t bytes) const;

  /// The host's own memory, which has to begin with a page and to outlive the buffer; nil where
  /// the system does not give it. The rest of the last page is shared too, and left alone.
  apple::Ref<apple::MTLBuffer> share(void* pages, std::size_t bytes) const;

 private:
  apple::Ref<apple::MTLDevice> device_;
  apple::Ref<apple::MTLCommandQueue> queue_;
  std::size_t max_buffer_bytes_ = 0;
  DeviceInfo info_;
};

/// Whether memory can be shared with the GPU as it lies.
bool is_page_aligned(const void* address);

/// The GPU cores of a chip by its name; the largest of its kind, as Metal does not tell.
int cores_of(const std::string& chip);

}  // namespace sdpa::metal
