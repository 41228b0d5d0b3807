// SPDX-License-Identifier: MIT
#include "device_memory.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "mapping.h"

namespace sim {
namespace {

// Arguments that are not bound point into a stretch of their own, far from everything.
constexpr size_t kUnboundBytes = 1 << 20, kUnboundTotal = kUnboundBytes * (kMaxBuffers + 1);
// Placing keeps addresses modulo this, so that misaligned offsets stay misaligned.
constexpr size_t kAlign = 256;

constexpr size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

DeviceMemory::DeviceMemory()
    : data_(map_memory(kArena)), state_(map_memory(kArena)), shadow_(kArena) {}

DeviceMemory::~DeviceMemory() {
  unmap_memory(data_, kArena);
  unmap_memory(state_, kArena);
}

void DeviceMemory::place(const std::vector<Binding>& bindings,
                         const std::vector<ArgumentInfo>& arguments) {
  top_ = kUnboundTotal;
  for (const ArgumentInfo& argument : arguments) {
    for (const Binding& binding : bindings) {
      if (binding.kind == Binding::Kind::kThreadgroup || !binding.data) continue;
      if (argument.kind == Binding::Kind::kThreadgroup || binding.index != argument.index) continue;
      if (!merge(binding, argument)) add_region(binding, argument);
    }
  }
  for (Region& region : regions_) copy_in(region);
}

void* DeviceMemory::address(int index) const {
  for (const Place& place : places_)
    if (place.index == index) return data_ + place.offset;
  return data_ + kUnboundBytes * index + kUnboundBytes / 2;
}

void DeviceMemory::add_region(const Binding& binding, const ArgumentInfo& argument) {
  auto* host = static_cast<uint8_t*>(binding.data);
  const bool is_inline = binding.kind == Binding::Kind::kBytes;  // Metal aligns its copy
  const size_t low_bits = is_inline ? 0 : reinterpret_cast<uintptr_t>(host) % kAlign;
  const size_t place = round_up(top_ + kGap, kAlign) + low_bits;
  top_ = place + binding.bytes + kGap;
  if (top_ > kArena)
    throw std::invalid_argument("the buffers of one launch take " + std::to_string(top_) +
                                " bytes, at most " + std::to_string(kArena) + " are simulated");
  regions_.push_back({.host = host,
                      .bytes = binding.bytes,
                      .offset = place,
                      .written = binding.written,
                      .is_writable = !argument.read_only,
                      .is_constant = argument.is_constant,
                      .is_inline = is_inline,
                      .indices = {argument.index},
                      .name = argument.name});
  places_.push_back({argument.index, place});
}

bool DeviceMemory::merge(const Binding& binding, const ArgumentInfo& argument) {
  if (binding.kind == Binding::Kind::kBytes) return false;
  auto* host = static_cast<uint8_t*>(binding.data);
  for (Region& region : regions_) {
    if (region.is_inline || host + binding.bytes <= region.host ||
        region.host + region.bytes <= host)
      continue;
    if (host < region.host || host + binding.bytes > region.host + region.bytes)
      throw std::invalid_argument("buffers " + std::to_string(region.indices[0]) + " and " +
                                  std::to_string(argument.index) +
                                  " overlap; one must contain the other, the larger first");
    region.is_writable |= !argument.read_only;
    region.indices.push_back(argument.index);
    places_.push_back({argument.index, region.offset + size_t(host - region.host)});
    return true;
  }
  return false;
}

void DeviceMemory::copy_in(Region& region) {
  memcpy(data_ + region.offset, region.host, region.bytes);
  const uint8_t base = uint8_t(kInside | (region.is_writable ? kWritable : 0) |
                               (region.is_constant ? kConstant : 0));
  uint8_t* state = state_ + region.offset;
  for (size_t i = 0; i < region.bytes; i++)
    state[i] = base | (!region.written || region.written[i] ? kWritten : 0);
}

void DeviceMemory::retrieve() {
  for (const Region& region : regions_) {
    if (region.is_writable && !region.is_inline) {
      memcpy(region.host, data_ + region.offset, region.bytes);
      for (size_t i = 0; region.written && i < region.bytes; i++)
        region.written[i] = (state_[region.offset + i] & kWritten) != 0;
    }
    memset(state_ + region.offset, 0, region.bytes);
  }
  regions_.clear();
  places_.clear();
}

const DeviceMemory::Region* DeviceMemory::nearest(size_t offset) const {
  const Region* best = nullptr;
  size_t best_distance = 0;
  for (const Region& region : regions_) {
    const size_t last = region.offset + (region.bytes ? region.bytes - 1 : 0);
    const size_t distance = offset < region.offset ? region.offset - offset
                            : offset > last        ? offset - last
                                                   : 0;
    if (!best || distance < best_distance) best = &region, best_distance = distance;
  }
  return best;
}

std::string DeviceMemory::describe(Problem problem, const void* address, size_t bytes) const {
  const size_t place = offset(address);
  const std::string text = problem_text(problem, bytes);
  if (place < kUnboundTotal)
    return text + " through argument " + std::to_string(place / kUnboundBytes) +
           ", which is not bound";
  return text + place_text(place);
}

std::string DeviceMemory::place_text(size_t offset) const {
  const Region* region = nearest(offset);
  if (!region) return {};
  return " in device memory at byte " + std::to_string(int64_t(offset) - int64_t(region->offset)) +
         " of buffer " + std::to_string(region->indices[0]) + " (" + region->name +
         "), which has " + std::to_string(region->bytes) + " bytes";
}

}  // namespace sim
