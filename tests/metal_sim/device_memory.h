// SPDX-License-Identifier: MIT
// The buffers of one launch, laid out in the simulator's own memory with wide gaps between them.
//
// The host's memory is copied in before the launch and out after it. So a stray index hits a gap,
// where host memory might have held something harmless.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "shadow.h"
#include "sim.h"

namespace sim {

class DeviceMemory {
 public:
  DeviceMemory();
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// Copies the launch's buffers in. Those that overlap in host memory stay one.
  void place(const std::vector<Binding>& bindings, const std::vector<ArgumentInfo>& arguments);
  /// Where an argument lies on the device; for one that is not bound, where every access faults.
  void* address(int index) const;
  /// Copies what may have been written back to the host, and forgets the buffers.
  void retrieve();

  bool contains(const void* address) const { return offset(address) < kArena; }

  /// Each returns a fault's beginning, empty if all is well.
  std::string load(const void* address, size_t bytes, const View& view, bool races);
  std::string store(const void* address, size_t bytes, const View& view, bool races);

 private:
  static constexpr size_t kArena = size_t{1} << 31, kGap = 64 * 1024;

  // A byte's state is a set of these.
  enum State : uint8_t { kInside = 1, kWritten = 2, kWritable = 4 };

  struct Region {
    uint8_t* host;
    size_t bytes, offset;
    uint8_t* written;
    bool is_writable, is_inline;
    std::vector<int> indices;  // of the arguments that lie here
    std::string name;
  };

  struct Place {
    int index;
    size_t offset;
  };

  size_t offset(const void* address) const {
    return size_t(static_cast<const uint8_t*>(address) - data_);
  }

  void add_region(const Binding& binding, const ArgumentInfo& argument);
  bool merge(const Binding& binding, const ArgumentInfo& argument);
  void copy_in(Region& region);
  std::string outside(const char* access, size_t offset, size_t bytes) const;
  std::string inside(const char* access, size_t offset, size_t bytes) const;
  const Region* nearest(size_t offset) const;

  uint8_t* data_;
  uint8_t* state_;
  Shadow shadow_;
  std::vector<Region> regions_;
  std::vector<Place> places_;
  size_t top_ = 0;
};

}  // namespace sim
