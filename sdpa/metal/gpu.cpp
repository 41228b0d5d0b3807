// SPDX-License-Identifier: MIT
#include "sdpa/metal/gpu.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <string>

#include "sdpa/metal/foundation.h"

namespace sdpa::metal {

using apple::call;
using apple::Error;
using apple::Handle;
using apple::MTLBuffer;
using apple::MTLCommandQueue;
using apple::MTLDevice;
using apple::NSInteger;
using apple::NSString;
using apple::NSUInteger;
using apple::Ref;
using apple::send;
using apple::operator""_sel;

namespace {

constexpr const char* kCoreGraphics =
    "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics";
constexpr const char* kMetal = "/System/Library/Frameworks/Metal.framework/Metal";

constexpr int kOldestMacos = 14;         // Metal 3.1, which has bfloat
constexpr int kOldestFamily = 7;         // M1: the first with SIMD-group matrices
constexpr int kNewestFamily = 10;        // M5
constexpr NSInteger kFamilyBase = 1000;  // MTLGPUFamilyApple7 is 1007

enum class ResourceOptions : NSUInteger { kStorageShared = 0 };

/// A program without a window may be given no device unless CoreGraphics is loaded as well.
Ref<MTLDevice> open_device() {
  apple::runtime().framework(kCoreGraphics);
  void* metal = apple::runtime().framework(kMetal);
  if (!metal) throw Error("The Metal framework could not be loaded on this system.");
  if (!apple::macos_at_least(kOldestMacos)) {
    throw Error("macOS 14 or newer is needed, as the kernels are written in Metal 3.1.");
  }
  auto device = call<Ref<MTLDevice>, "MTLCreateSystemDefaultDevice">(metal);
  if (!device) throw Error("Metal found no GPU on this system.");
  return device;
}

std::string name_of(const Ref<MTLDevice>& device) {
  return text_of(send<Handle<NSString>>(device, "name"_sel));
}

int family_of(const Ref<MTLDevice>& device) {
  int family = kNewestFamily;
  while (family >= kOldestFamily &&
         !send<bool>(device, "supportsFamily:"_sel, kFamilyBase + NSInteger{family})) {
    --family;
  }
  if (family >= kOldestFamily) return family;
  throw Error("The GPU " + name_of(device) +
              " has no SIMD-group matrices; an M1 or newer is needed.");
}

/// "Apple M4 Pro" is "m4 pro" in plans.
std::string chip_of(const std::string& name) {
  std::string chip = name.starts_with("Apple ") ? name.substr(6) : name;
  std::ranges::transform(chip, chip.begin(), [](unsigned char c) { return std::tolower(c); });
  return chip;
}

DeviceInfo describe(const Ref<MTLDevice>& device) {
  const std::string chip = chip_of(name_of(device));
  const auto threadgroup = send<NSUInteger>(device, "maxThreadgroupMemoryLength"_sel);
  return {.name = chip,
          .family = family_of(device),
          .cores = cores_of(chip),
          .threadgroup_bytes = static_cast<std::int64_t>(threadgroup)};
}

}  // namespace

int cores_of(const std::string& chip) {
  if (chip.ends_with("ultra")) return 80;
  if (chip.ends_with("max")) return 40;
  return chip.ends_with("pro") ? 20 : 10;
}

bool is_page_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % kPageBytes == 0;
}

Gpu::Gpu() {
  const apple::AutoreleasePool pool;
  device_ = open_device();
  info_ = describe(device_);
  max_buffer_bytes_ = send<NSUInteger>(device_, "maxBufferLength"_sel);
  queue_ = send<Ref<MTLCommandQueue>>(device_, "newCommandQueue"_sel);
  if (!queue_) throw Error("The GPU gave no command queue.");
}

Ref<MTLBuffer> Gpu::allocate(std::size_t bytes) const {
  if (bytes > max_buffer_bytes_) {
    throw Error("Invalid buffer size: the GPU's buffers have at most " +
                std::to_string(max_buffer_bytes_) + " bytes, and " + std::to_string(bytes) +
                " are needed.");
  }
  auto buffer = send<Ref<MTLBuffer>>(device_, "newBufferWithLength:options:"_sel, NSUInteger{bytes},
                                     ResourceOptions::kStorageShared);
  if (!buffer) throw Error("The GPU gave no memory for " + std::to_string(bytes) + " bytes.");
  return buffer;
}

Ref<MTLBuffer> Gpu::share(void* pages, std::size_t bytes) const {
  const std::size_t whole = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (whole > max_buffer_bytes_) return {};
  return send<Ref<MTLBuffer>>(device_, "newBufferWithBytesNoCopy:length:options:deallocator:"_sel,
                              pages, NSUInteger{whole}, ResourceOptions::kStorageShared,
                              apple::kNoBlock);
}

}  // namespace sdpa::metal
