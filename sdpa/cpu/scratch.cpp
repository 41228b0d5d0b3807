// SPDX-License-Identifier: MIT
#include "sdpa/cpu/scratch.h"

#include <memory>
#include <mutex>
#include <new>
#include <utility>

namespace sdpa::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Release {
  void operator()(char* memory) const { ::operator delete[](memory, kAlignment); }
};

using Bytes = std::unique_ptr<char[], Release>;

Bytes allocate(std::size_t bytes) {
  return Bytes(static_cast<char*>(::operator new[](bytes, kAlignment)));
}

constexpr std::size_t kMostKept = std::size_t{64} << 20;

/// What a call has left for the next.
struct Shelf {
  std::mutex mutex;
  Bytes memory;
  std::size_t size = 0;
};

/// Never destroyed: threads may still be at work when the process ends.
Shelf& shelf() {
  static Shelf& only = *new Shelf;
  return only;
}

/// Exchanges what lies on the shelf for `memory`; both may be empty.
void exchange(Bytes& memory, std::size_t& size) {
  const std::lock_guard lock(shelf().mutex);
  std::swap(shelf().memory, memory);
  std::swap(shelf().size, size);
}

}  // namespace

char* thread_scratch(std::size_t bytes) {
  thread_local Bytes memory;
  thread_local std::size_t size = 0;
  if (bytes > size) {
    memory.reset();
    memory = allocate(bytes);
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

KeptMemory::KeptMemory(std::int64_t count) {
  const std::size_t wanted = static_cast<std::size_t>(count) * sizeof(float);
  if (wanted == 0) return;
  Bytes memory;
  exchange(memory, bytes_);
  if (bytes_ < wanted) {
    memory.reset();
    memory = allocate(wanted);
    bytes_ = wanted;
  }
  floats_ = reinterpret_cast<float*>(memory.release());
}

KeptMemory::~KeptMemory() {
  Bytes memory(reinterpret_cast<char*>(floats_));
  if (bytes_ > 0 && bytes_ <= kMostKept) exchange(memory, bytes_);
}

}  // namespace sdpa::cpu
