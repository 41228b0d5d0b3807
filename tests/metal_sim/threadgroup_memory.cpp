// SPDX-License-Identifier: MIT
#include "threadgroup_memory.h"

#include <algorithm>
#include <cstring>

#include "conflict_text.h"
#include "mapping.h"
#include "sim.h"

namespace sim {
namespace {

constexpr size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

ThreadgroupMemory::ThreadgroupMemory()
    : data_(map_memory(kArena)), state_(kArena, kOutside), shadow_(kArena) {}

ThreadgroupMemory::~ThreadgroupMemory() { unmap_memory(data_, kArena); }

void ThreadgroupMemory::clear() {
  arrays_.clear();
  std::fill_n(state_.begin(), top_, kOutside);
  top_ = used_ = 0;
}

void ThreadgroupMemory::poison() {
  memset(data_, 0xFF, top_);
  for (const Array& array : arrays_)
    std::fill_n(state_.begin() + array.offset, array.bytes, kUnwritten);
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
  std::fill_n(state_.begin() + place, bytes, kUnwritten);
  return data_ + place;
}

std::string ThreadgroupMemory::load(const void* address, size_t bytes, const View& view,
                                    bool races) {
  const size_t start = offset(address);
  for (size_t i = start; i < start + bytes; i++) {
    if (state_[i] == kOutside) return describe("load outside any array", i, bytes);
    if (state_[i] == kUnwritten) return describe("read of uninitialised memory", i, bytes);
  }
  if (!races) return {};
  const Conflict conflict = shadow_.load(start, bytes, view);
  return conflict.past ? describe(conflict_text(conflict, "read"), start, bytes) +
                             past_text(conflict, view.me)
                       : std::string();
}

std::string ThreadgroupMemory::store(const void* address, size_t bytes, const View& view,
                                     bool races) {
  const size_t start = offset(address);
  for (size_t i = start; i < start + bytes; i++) {
    if (state_[i] == kOutside) return describe("store outside any array", i, bytes);
    state_[i] = kWritten;
  }
  if (!races) return {};
  const Conflict conflict = shadow_.store(start, bytes, view);
  return conflict.past ? describe(conflict_text(conflict, "write"), start, bytes) +
                             past_text(conflict, view.me)
                       : std::string();
}

std::string ThreadgroupMemory::describe(const char* access, size_t offset, size_t bytes) const {
  const Array* near = nullptr;
  for (const Array& array : arrays_)
    if (!near || array.offset <= offset) near = &array;
  std::string text =
      std::string(access) + " (" + std::to_string(bytes) + " bytes) in threadgroup memory";
  if (!near) return text;
  const auto index = near - arrays_.data();
  const auto at = int64_t(offset) - int64_t(near->offset);
  return text + " at byte " + std::to_string(at) + " of array " + std::to_string(index) + " (of " +
         std::to_string(near->bytes) + " bytes)";
}

}  // namespace sim
