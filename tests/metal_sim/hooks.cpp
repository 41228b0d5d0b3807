// SPDX-License-Identifier: MIT
// Kernel code is compiled with -fsanitize=thread, which puts a call before every load and store.
// Here those calls go to the simulator; nothing of the thread sanitizer itself is linked. The
// functions are hidden inside each kernel library, so that a program may use the sanitizer as well.
#include "lane.h"

#pragma GCC visibility push(hidden)
extern "C" {

void __tsan_init() {}

#define SIM_HOOK(bytes)                                                                   \
  void __tsan_read##bytes(void* address) { sim::check_load(address, bytes); }             \
  void __tsan_write##bytes(void* address) { sim::check_store(address, bytes); }           \
  void __tsan_unaligned_read##bytes(void* address) { sim::check_load(address, bytes); }   \
  void __tsan_unaligned_write##bytes(void* address) { sim::check_store(address, bytes); } \
  void __tsan_read_write##bytes(void* address) {                                          \
    sim::check_load(address, bytes);                                                      \
    sim::check_store(address, bytes);                                                     \
  }                                                                                       \
  void __tsan_unaligned_read_write##bytes(void* address) { __tsan_read_write##bytes(address); }
SIM_HOOK(1)
SIM_HOOK(2)
SIM_HOOK(4)
SIM_HOOK(8)
SIM_HOOK(16)
#undef SIM_HOOK

void __tsan_read_range(void* address, size_t bytes) { sim::check_load(address, bytes); }

void __tsan_write_range(void* address, size_t bytes) { sim::check_store(address, bytes); }

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  sim::check_load(from, bytes);
  sim::check_store(to, bytes);
  return __builtin_memcpy(to, from, bytes);
}

void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  sim::check_load(from, bytes);
  sim::check_store(to, bytes);
  return __builtin_memmove(to, from, bytes);
}

void* __tsan_memset(void* to, int value, size_t bytes) {
  sim::check_store(to, bytes);
  return __builtin_memset(to, value, bytes);
}

}  // extern "C"
#pragma GCC visibility pop
