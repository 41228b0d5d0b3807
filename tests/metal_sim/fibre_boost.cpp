// SPDX-License-Identifier: MIT
// The portable way, for processors other than x86-64.
#include <atomic>
#include <boost/context/detail/fcontext.hpp>

#include "fibre.h"

namespace sim {
namespace {

namespace context = boost::context::detail;

// Each switch hands over where the context that it left is to be kept.
void keep(context::transfer_t transfer) { *static_cast<void**>(transfer.data) = transfer.fctx; }

std::atomic<void (*)()> new_entry = nullptr;

[[noreturn]] void start(context::transfer_t transfer) {
  keep(transfer);
  new_entry.load()();
  __builtin_unreachable();
}

}  // namespace

void switch_fibre(void** save, void* to) { keep(context::jump_fcontext(to, save)); }

void* make_fibre(uint8_t* top, size_t bytes, void (*entry)()) {
  new_entry = entry;
  return context::make_fcontext(top, bytes, start);
}

}  // namespace sim
