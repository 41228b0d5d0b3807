// SPDX-License-Identifier: MIT
#include "threadgroup_memory.h"

#include <algorithm>
#include <cstring>

#include "mapping.h"

namespace sim {
namespace {

constexpr size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

ThreadgroupMemory::ThreadgroupMemory()
    : data_(map_memory(kArena)), state_(kArena), shadow_(kArena) {}

ThreadgroupMemory::~ThreadgroupMemory() { unmap_memory(data_, kArena); }

void ThreadgroupMemory::clear() {
  arrays_.clear();
  std::fill_n(state_.begin(), top_, 0);
  top_ = used_ = 0;
}

void ThreadgroupMemory::poison() {
  memset(data_, 0xFF, top_);
  for (const Array& array : arrays_)
    std::fill_n(state_.begin() + array.offset, array.bytes, kInside);
}

void* ThreadgroupMemory::array(const void* tag, size_t bytes, size_t align) {
  for (const Array& array : arrays_)
    if (array.tag == tag && array.bytes == bytes) return data_ + array.offset;
  used_ += round_up(bytes, 16);  // as Metal rounds lengths
  if (used_ > kMaxThreadgroupMemory) return nullptr;
  const size_t place = round_up(top_ + kGap, std::max<size_t>(align, 16));
  arrays_.push_back({tag, place, bytes});
  top_ = place + bytes;
  memset(data_ + place, 0xFF, bytes);
  std::fill_n(state_.begin() + place, bytes, kInside);
  return data_ + place;
}

std::string ThreadgroupMemory::describe(Problem problem, const void* address, size_t bytes) const {
  const size_t place = offset(address);
  const Array* near = nullptr;
  for (const Array& array : arrays_)
    if (!near || array.offset <= place) near = &array;
  const std::string text = problem_text(problem, bytes) + " in threadgroup memory";
  if (!near) return text;
  return text + " at byte " + std::to_string(int64_t(place) - int64_t(near->offset)) +
         " of array " + std::to_string(near - arrays_.data()) + " (of " +
         std::to_string(near->bytes) + " bytes)";
}

}  // namespace sim
