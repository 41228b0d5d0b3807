// SPDX-License-Identifier: MIT
#include "sdpa/cpu/scratch.h"

#include <memory>
#include <new>

namespace sdpa::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Release {
  void operator()(char* memory) const { ::operator delete[](memory, kAlignment); }
};

}  // namespace

char* thread_scratch(std::size_t bytes) {
  thread_local std::unique_ptr<char[], Release> memory;
  thread_local std::size_t size = 0;
  if (bytes > size) {
    memory.reset();
    memory.reset(static_cast<char*>(::operator new[](bytes, kAlignment)));
    size = bytes;
  }
  return memory.get();
}

CallMemory::CallMemory(std::int64_t count) {
  if (count > 0)
    floats_ = static_cast<float*>(
        ::operator new(static_cast<std::size_t>(count) * sizeof(float), kAlignment));
}

CallMemory::~CallMemory() { ::operator delete(floats_, kAlignment); }

}  // namespace sdpa::cpu
