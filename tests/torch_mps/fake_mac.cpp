// SPDX-License-Identifier: MIT
//
// The fake Mac as a library that goes by libobjc and by the frameworks, so that Python's module
// finds it as it finds Apple's; and torch's stream and buffers on it, as C functions for ctypes.
#include <cstring>
#include <string>

#include "sdpa/metal/objc.h"
#include "tests/apple_fake/keep_kernel.h"
#include "tests/apple_fake/mac.h"
#include "tests/apple_fake/metal.h"

sdpa::apple_fake::FakeRuntime* stub_runtime = nullptr;

namespace {

using namespace sdpa::apple;
using sdpa::apple_fake::Buffer;
using sdpa::apple_fake::FakeMac;
using sdpa::apple_fake::KeepKernel;

constexpr const char* kFrameworks[] = {
    "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics",
    "/System/Library/Frameworks/Metal.framework/Metal"};

/// A Mac with torch's stream on it.
struct Mac {
  KeepKernel kernels;
  FakeMac fake{kernels};
  Ref<MTLCommandQueue> queue;
  Ref<MPSCommandBuffer> commands;
  int coalescing_ended = 0;

  Mac() {
    const AutoreleasePool pool;
    void* metal = nullptr;
    for (const char* path : kFrameworks) metal = runtime().framework(path);
    const auto device = call<Ref<MTLDevice>, "MTLCreateSystemDefaultDevice">(metal);
    queue = send<Ref<MTLCommandQueue>>(device, "newCommandQueue"_sel);
    stub_runtime = &fake.runtime;
  }
};

/// Never taken down: the module's own objects are on it to the end of the process.
Mac& mac() {
  static Mac& instance = *new Mac;
  return instance;
}

[[maybe_unused]] const bool is_ready = (mac(), true);

}  // namespace

extern "C" {

void* fake_current_stream() { return &mac(); }

void* fake_command_buffer(void* stream) {
  Mac& owner = *static_cast<Mac*>(stream);
  if (!owner.commands) {
    owner.commands = send<Ref<MPSCommandBuffer>>(class_of<MPSCommandBuffer>(),
                                                 "commandBufferFromCommandQueue:"_sel, owner.queue);
  }
  return owner.commands.id();
}

void fake_end_coalescing(void* stream) { ++static_cast<Mac*>(stream)->coalescing_ended; }

void* fake_dispatch_queue() { return &mac().queue; }

void fake_dispatch_sync(void* queue, void* context, void (*work)(void*)) {
  if (queue != &mac().queue) mac().fake.runtime.note("work for a queue that is not the stream's");
  work(context);
}

void fake_synchronize() {
  const AutoreleasePool pool;
  const Ref<MPSCommandBuffer> commands = std::move(mac().commands);
  mac().commands = {};
  if (!commands) return;
  const auto root = send<Handle<MTLCommandBuffer>>(commands, "rootCommandBuffer"_sel);
  send<void>(root, "commit"_sel);
  send<void>(root, "waitUntilCompleted"_sel);
}

/// A Metal buffer over memory of the host's.
void* fake_buffer(void* memory, std::size_t bytes) {
  const AutoreleasePool pool;
  return mac().fake.runtime.create("MTLBuffer",
                                   std::make_unique<Buffer>(mac().fake.gpu, memory, bytes));
}

void fake_release(void* buffer) { mac().fake.runtime.release(static_cast<Id>(buffer)); }

void fake_limit_memory(std::size_t bytes) { mac().fake.gpu.faults.memory_bytes = bytes; }

void fake_fail_graphs(bool fail) { mac().fake.gpu.faults.no_executable = fail; }

int fake_graphs() { return mac().fake.gpu.graphs; }

int fake_coalescing_ended() { return mac().coalescing_ended; }

/// The mistakes so far, apart from what is still alive, one a line.
void fake_mistakes(char* text, std::size_t bytes) {
  std::string all;
  for (const std::string& mistake : mac().fake.runtime.finish()) {
    if (!mistake.starts_with("leak of ")) all += mistake + "\n";
  }
  std::strncpy(text, all.c_str(), bytes - 1);
  text[bytes - 1] = 0;
}
}
