// SPDX-License-Identifier: MIT
#include <atomic>
#include <exception>
#include <functional>
#include <future>
#include <mutex>

#include "tests/apple_fake/metal.h"

namespace sdpa::apple_fake {
namespace {

constexpr std::size_t kMaxInlineBytes = 4096;  // of setBytes

enum Status : NSUInteger { kNotEnqueued = 0, kCommitted = 2, kCompleted = 4, kFailed = 5 };

/// One dispatch, or what a framework above Metal encodes, with all that it needs kept alive.
struct Work {
  Launch launch;
  std::function<void()> task = {};
  std::vector<Hold> held;
  std::vector<std::shared_ptr<std::vector<std::byte>>> inline_bytes;
};

/// Command buffers of one queue run in the order of their commits.
struct Queue : Body {
  std::mutex mutex;
  std::shared_future<void> last;

  Made command_buffer();
};

struct Encoder;

struct CommandBuffer : Body {
  FakeRuntime& runtime = current_runtime();
  FakeGpu& gpu = current_gpu();
  Hold queue;
  std::vector<Work> work;
  Encoder* open = nullptr;
  std::atomic<NSUInteger> state{kNotEnqueued};
  std::shared_future<void> done;
  bool in_flight = false;  // committed, and not known to the caller to be over
  std::string failure;
  NSInteger failure_code = 1;

  explicit CommandBuffer(Hold from) : queue(std::move(from)) {}

  ~CommandBuffer() override {
    if (done.valid()) done.wait();
    if (in_flight) mark_buffers(-1);
    if (!work.empty() && state == kNotEnqueued) {
      runtime.note("a command buffer with work was never committed");
    }
  }

  Made encoder();
  void commit();
  void wait();
  void run(const std::shared_future<void>& before);
  void fail(const std::string& text, NSInteger code);
  void mark_buffers(int change);

  NSUInteger status() { return state; }

  Made error() {
    if (state != kFailed) return {};
    return make<NSErrorBody>("NSError", failure, failure_code);
  }
};

/// What a dispatch must not lack or exceed; each is undefined behaviour or a crash on a GPU.
void check_dispatch(const Launch& launch, const KernelInfo& kernel, const GpuModel& model) {
  FakeRuntime& runtime = current_runtime();
  const auto volume = [](apple::MTLSize size) { return size.width * size.height * size.depth; };
  const std::size_t threads = volume(launch.group);
  const std::size_t limit = std::min(kernel.max_threads, model.max_threads);
  if (volume(launch.grid) == 0 || threads == 0) runtime.fail(current_message() + ": no threads");
  if (threads > limit) {
    runtime.fail(current_message() + ": " + std::to_string(threads) +
                 " threads in a threadgroup, the pipeline allows " + std::to_string(limit));
  }
  if (kernel.threadgroup_bytes > model.max_threadgroup_bytes) {
    runtime.fail(current_message() + ": " + std::to_string(kernel.threadgroup_bytes) +
                 " bytes of threadgroup memory");
  }
}

void check_bindings(const Launch& launch, const KernelInfo& kernel) {
  for (const Binding& binding : kernel.bindings) {
    const BoundBuffer& bound = launch.buffers.at(binding.index);
    const std::string what = kernel.name + ": buffer " + std::to_string(binding.index);
    if (!bound.data) current_runtime().fail(what + " is not set");
    if (bound.bytes < binding.bytes) {
      current_runtime().fail(what + " has " + std::to_string(bound.bytes) +
                             " bytes, the kernel needs " + std::to_string(binding.bytes));
    }
  }
}

struct Encoder : Body {
  CommandBuffer* owner;
  Hold keeps_owner;
  const PipelineState* pipeline = nullptr;
  Work next;
  bool ended = false;

  explicit Encoder(CommandBuffer* from) : owner(from), keeps_owner(from->self) {
    owner->open = this;
  }

  ~Encoder() override {
    if (ended) return;
    owner->open = nullptr;
    owner->runtime.note("an encoder was released before endEncoding");
  }

  void require_open() {
    if (ended) owner->runtime.fail(current_message() + " after endEncoding");
  }

  void require_slot(NSUInteger index) {
    require_open();
    if (index >= kArgumentSlots) {
      owner->runtime.fail(current_message() + ": there is no index " + std::to_string(index));
    }
  }

  void set_pipeline(In<PipelineState> state) {
    require_open();
    pipeline = state.get();
    next.launch.kernel = state->kernel.name;
    next.held.emplace_back(state->self);
  }

  void set_buffer(Maybe<Buffer> buffer, NSUInteger offset, NSUInteger index) {
    require_slot(index);
    BoundBuffer& bound = next.launch.buffers[index];
    bound = {};
    if (!buffer.get()) return;
    if (offset >= buffer->bytes) {
      owner->runtime.fail(current_message() + ": offset " + std::to_string(offset) +
                          " is past the end of " + std::to_string(buffer->bytes) + " bytes");
    }
    bound = {buffer->data + offset, buffer->bytes - offset};
    next.held.emplace_back(buffer->self);
  }

  void set_bytes(const void* bytes, NSUInteger count, NSUInteger index) {
    require_slot(index);
    if (!bytes || count == 0 || count > kMaxInlineBytes) {
      owner->runtime.fail(current_message() + ": " + std::to_string(count) +
                          " bytes, allowed are 1 to 4096");
    }
    const auto* from = static_cast<const std::byte*>(bytes);
    auto copy = std::make_shared<std::vector<std::byte>>(from, from + count);
    next.launch.buffers[index] = {copy->data(), count};
    next.inline_bytes.push_back(std::move(copy));
  }

  void dispatch(apple::MTLSize grid, apple::MTLSize group) {
    require_open();
    if (!pipeline) owner->runtime.fail(current_message() + " without a pipeline state");
    next.launch.grid = grid;
    next.launch.group = group;
    check_dispatch(next.launch, pipeline->kernel, owner->gpu.model);
    check_bindings(next.launch, pipeline->kernel);
    ++owner->gpu.dispatches;
    owner->work.push_back(next);
  }

  void end() {
    if (ended) return owner->runtime.note("endEncoding sent twice");
    ended = true;
    owner->open = nullptr;
  }
};

Made Queue::command_buffer() {
  if (current_gpu().faults.no_command_buffer) return {};
  return make<CommandBuffer>("MTLCommandBuffer", Hold(self));
}

Made CommandBuffer::encoder() {
  if (open) runtime.fail("a second encoder while one is open");
  if (state != kNotEnqueued) runtime.fail("an encoder for a command buffer already committed");
  if (gpu.faults.no_encoder) return {};
  return make<Encoder>("MTLComputeCommandEncoder", this);
}

void CommandBuffer::fail(const std::string& text, NSInteger code) {
  failure = text;
  failure_code = code;
  state = kFailed;
}

void CommandBuffer::run(const std::shared_future<void>& before) {
  if (before.valid()) before.wait();
  if (!gpu.faults.command_error.empty()) {
    return fail(gpu.faults.command_error, gpu.faults.command_error_code);
  }
  try {
    for (const Work& each : work) each.task ? each.task() : gpu.executor.run(each.launch);
    state = kCompleted;
  } catch (const std::exception& error) {
    fail(error.what(), 1);
  }
}

/// As on a GPU, the work goes on beside the caller.
void CommandBuffer::commit() {
  if (state != kNotEnqueued) return runtime.note("commit sent twice to a command buffer");
  if (open) return runtime.note("commit while an encoder is open: endEncoding was not sent");
  state = kCommitted;
  in_flight = true;
  mark_buffers(1);
  auto* from = static_cast<Queue*>(queue.id()->body.get());
  const std::lock_guard lock(from->mutex);
  done = std::async(std::launch::async, [this, before = from->last] { run(before); }).share();
  from->last = done;
}

void CommandBuffer::wait() {
  if (!done.valid()) return runtime.fail("waitUntilCompleted before commit waits for ever");
  done.wait();
  if (std::exchange(in_flight, false)) mark_buffers(-1);
}

void CommandBuffer::mark_buffers(int change) {
  for (const Work& each : work) {
    for (const Hold& hold : each.held) {
      if (auto* buffer = dynamic_cast<Buffer*>(hold.id()->body.get())) buffer->in_flight += change;
    }
  }
}

}  // namespace

Made make_queue() { return make<Queue>("MTLCommandQueue"); }

Made make_command_buffer(apple::Id queue) {
  return body_of<Queue>(queue, "argument")->command_buffer();
}

apple::Id queue_of(apple::Id command_buffer) {
  return body_of<CommandBuffer>(command_buffer, "argument")->queue.id();
}

void add_task(apple::Id command_buffer, std::function<void()> task, std::vector<Hold> held) {
  auto* body = body_of<CommandBuffer>(command_buffer, "argument");
  if (body->open) body->runtime.fail("a graph is encoded while an encoder is open");
  if (body->state != kNotEnqueued) {
    body->runtime.fail("a graph is encoded to a command buffer already committed");
  }
  body->work.push_back(
      {.launch = {}, .task = std::move(task), .held = std::move(held), .inline_bytes = {}});
}

void commit(apple::Id command_buffer) {
  body_of<CommandBuffer>(command_buffer, "argument")->commit();
}

void install_commands(FakeRuntime& runtime) {
  define<"MTLCommandQueue">(runtime).on<"commandBuffer", &Queue::command_buffer>();
  define<"MTLCommandBuffer">(runtime)
      .on<"computeCommandEncoder", &CommandBuffer::encoder>()
      .on<"commit", &CommandBuffer::commit>()
      .on<"waitUntilCompleted", &CommandBuffer::wait>()
      .on<"status", &CommandBuffer::status>()
      .on<"error", &CommandBuffer::error>();
  define<"MTLComputeCommandEncoder">(runtime)
      .on<"setComputePipelineState:", &Encoder::set_pipeline>()
      .on<"setBuffer:offset:atIndex:", &Encoder::set_buffer>()
      .on<"setBytes:length:atIndex:", &Encoder::set_bytes>()
      .on<"dispatchThreadgroups:threadsPerThreadgroup:", &Encoder::dispatch>()
      .on<"endEncoding", &Encoder::end>();
}

}  // namespace sdpa::apple_fake
