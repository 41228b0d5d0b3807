// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <optional>

#include "sdpa/backend.h"
#include "sdpa/metal/kernel_set.h"

/// The Apple GPU for C++ users. Tensors of Device::kMetal lie in memory that host and GPU share:
/// `data` is the host's address. What begins with a page of 16 KiB is used as it lies, all else is
/// copied. A call returns when its results are there.
namespace sdpa::metal {

/// A back end that looks for the GPU when it is first asked anything.
std::unique_ptr<const Backend> make_backend(KernelSet kernels);

/// "metal" and "metal_proto", as the registry lists them.
const Backend& backend();
const Backend& proto_backend();

/// The system's GPU as plans see it; none where `backend()` is not available.
std::optional<DeviceInfo> system_device();

}  // namespace sdpa::metal
