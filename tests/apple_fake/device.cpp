// SPDX-License-Identifier: MIT
#include <cstdint>
#include <cstring>

#include "tests/apple_fake/metal.h"

namespace sdpa::apple_fake {
namespace {

constexpr std::size_t kPageBytes = 16384;  // of arm64 macOS
constexpr NSInteger kCompileFailure = 3;   // MTLLibraryErrorCompileFailure
constexpr NSInteger kAppleFamilyBase = 1000;

struct CompileOptions : Body {
  enum class Math { kUnset, kFast, kExact };

  NSUInteger language = 0;
  Math math = Math::kUnset;

  void set_language(NSUInteger version) { language = version; }

  void set_fast_math(bool fast) { math = fast ? Math::kFast : Math::kExact; }

  void set_math_mode(NSInteger mode) { math = mode == 2 ? Math::kFast : Math::kExact; }
};

struct KernelFunction : Body {
  KernelInfo kernel;

  explicit KernelFunction(KernelInfo info) : kernel(std::move(info)) {}
};

struct Library : Body {
  CompiledSource source;

  explicit Library(CompiledSource compiled) : source(std::move(compiled)) {}

  Made function(In<String> name) {
    for (const KernelInfo& kernel : source.kernels) {
      if (kernel.name == name->text) return make<KernelFunction>("MTLFunction", kernel);
    }
    return {};
  }
};

/// The newest language of a macOS: major version in the upper half.
NSUInteger newest_language(int macos) {
  if (macos >= 26) return 4 << 16;
  if (macos >= 15) return (3 << 16) + 2;
  return macos >= 14 ? (3 << 16) + 1 : 3 << 16;
}

/// Left to itself, Metal may choose a language without bfloat, and fast mathematics that drops
/// infinities and NaN. So both have to be said.
std::string check_options(const CompileOptions* options) {
  FakeRuntime& runtime = current_runtime();
  if (!options || options->language == 0) {
    runtime.note("a library is compiled without a language version");
  }
  if (!options || options->math != CompileOptions::Math::kExact) {
    runtime.note("a library is compiled with fast mathematics");
  }
  const bool known = !options || options->language <= newest_language(runtime.system().macos_major);
  return known ? "" : "the language version is newer than this system";
}

bool has_room(FakeGpu& gpu, std::size_t bytes) {
  if (bytes == 0) current_runtime().note("a buffer of no bytes");
  return bytes > 0 && bytes <= gpu.model.max_buffer_bytes &&
         gpu.allocated_bytes + bytes <= gpu.faults.memory_bytes;
}

struct Device : Body {
  FakeGpu& gpu = current_gpu();

  Made name() { return make<String>("NSString", gpu.model.name); }

  bool supports(NSInteger family) {
    return family > kAppleFamilyBase && family <= kAppleFamilyBase + gpu.model.apple_family;
  }

  NSUInteger max_buffer() { return gpu.model.max_buffer_bytes; }

  NSUInteger max_threadgroup_memory() { return gpu.model.max_threadgroup_bytes; }

  Made new_queue() { return gpu.faults.no_queue ? Made{} : make_queue(); }

  Made new_library(In<String> source, Maybe<CompileOptions> options, apple::Id* error) {
    if (gpu.faults.raises) throw NSException();
    std::string reason = check_options(options.get());
    if (reason.empty()) reason = gpu.faults.compile_error;
    CompiledSource compiled;
    if (reason.empty()) compiled = gpu.executor.compile(source->text);
    if (reason.empty()) reason = compiled.error;
    ++gpu.libraries;
    if (reason.empty()) return make<Library>("MTLLibrary", std::move(compiled));
    give_error(error, reason, kCompileFailure);
    return {};
  }

  Made new_pipeline(In<KernelFunction> function, apple::Id* error) {
    ++gpu.pipelines;
    if (gpu.faults.pipeline_error.empty()) {
      return make<PipelineState>("MTLComputePipelineState", function->kernel);
    }
    give_error(error, gpu.faults.pipeline_error, kCompileFailure);
    return {};
  }

  Made new_buffer(NSUInteger bytes, NSUInteger) {
    if (!has_room(gpu, bytes)) return {};
    return make<Buffer>("MTLBuffer", gpu, bytes);
  }

  Made share_pages(void* pages, NSUInteger bytes, NSUInteger, apple::Block) {
    if (reinterpret_cast<std::uintptr_t>(pages) % kPageBytes != 0 || bytes % kPageBytes != 0) {
      current_runtime().fail(current_message() + ": not whole pages of 16 KiB");
    }
    if (gpu.faults.no_sharing || bytes > gpu.model.max_buffer_bytes) return {};
    ++gpu.shared_buffers;
    return make<Buffer>("MTLBuffer", gpu, pages, bytes);
  }
};

/// A program without a window gets no device where CoreGraphics is not loaded.
apple::Id create_device() {
  if (current_gpu().faults.no_device || !current_runtime().has_loaded("CoreGraphics")) {
    return nullptr;
  }
  return make<Device>("MTLDevice").object;
}

}  // namespace

/// Fresh memory holds nothing that a kernel may rely on: as floats of any width, it is NaN.
Buffer::Buffer(FakeGpu& from, std::size_t size)
    : gpu(from), own(size, std::byte{0xff}), data(own.data()), bytes(size) {
  gpu.allocated_bytes += own.size();
}

Buffer::Buffer(FakeGpu& from, void* pages, std::size_t size)
    : gpu(from), data(static_cast<std::byte*>(pages)), bytes(size) {}

Buffer::~Buffer() { gpu.allocated_bytes -= own.size(); }

void* Buffer::contents() {
  if (in_flight > 0) current_runtime().note("contents of a buffer that the GPU is still using");
  return data;
}

void require_device(apple::Id object) { static_cast<void>(In<Device>(object)); }

void install_device(FakeRuntime& runtime) {
  runtime.add_function("MTLCreateSystemDefaultDevice", reinterpret_cast<void*>(&create_device));
  define<"MTLDevice">(runtime)
      .on<"name", &Device::name>()
      .on<"supportsFamily:", &Device::supports>()
      .on<"maxBufferLength", &Device::max_buffer>()
      .on<"maxThreadgroupMemoryLength", &Device::max_threadgroup_memory>()
      .on<"newCommandQueue", &Device::new_queue>()
      .on<"newLibraryWithSource:options:error:", &Device::new_library>()
      .on<"newComputePipelineStateWithFunction:error:", &Device::new_pipeline>()
      .on<"newBufferWithLength:options:", &Device::new_buffer>()
      .on<"newBufferWithBytesNoCopy:length:options:deallocator:", &Device::share_pages>();
  define<"MTLCompileOptions">(runtime)
      .on<"new", &make_new<CompileOptions>>()
      .on<"setLanguageVersion:", &CompileOptions::set_language>()
      .on<"setFastMathEnabled:", &CompileOptions::set_fast_math>()
      .on<"setMathMode:", &CompileOptions::set_math_mode>();
  define<"MTLLibrary">(runtime).on<"newFunctionWithName:", &Library::function>();
  define<"MTLFunction">(runtime);
  define<"MTLComputePipelineState">(runtime)
      .on<"maxTotalThreadsPerThreadgroup", &PipelineState::max_threads>();
  define<"MTLBuffer">(runtime).on<"contents", &Buffer::contents>().on<"length", &Buffer::length>();
}

void install_metal(FakeRuntime& runtime, FakeGpu& gpu) {
  runtime.add_part(std::shared_ptr<FakeGpu>(&gpu, [](FakeGpu*) {}));
  install_device(runtime);
  install_commands(runtime);
}

}  // namespace sdpa::apple_fake
