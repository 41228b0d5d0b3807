// SPDX-License-Identifier: MIT
//
// C functions for Python's ctypes: a library is made of a source, a kernel of it is launched. They
// return true, or false with a sentence in `message`.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>

#include "sdpa/metal/kernel_set.h"
#include "tests/metal_kernels/simulated_metal.h"

namespace {

/// What a failed call says.
struct Message {
  char* text;
  std::size_t bytes;

  bool fail(const std::string& sentence) const {
    const std::size_t length = std::min(sentence.size(), bytes - 1);
    std::memcpy(text, sentence.data(), length);
    text[length] = 0;
    return false;
  }
};

/// The host name in a source's last line, which instantiates it; empty where there is none.
std::string instantiated_name(const std::string& source) {
  const std::string opening = "\nSDPA_INSTANTIATE(\"";
  const std::size_t begin = source.rfind(opening);
  if (begin == std::string::npos) return {};
  const std::size_t name = begin + opening.size();
  return source.substr(name, source.find('"', name) - name);
}

/// What Apple's compiler would say, as far as can be told without it: the source has to be the
/// library's kernels, whole, and one instantiation.
std::string compile_error(const std::string& source, const std::string& name) {
  if (name.empty()) return "error: the source instantiates no kernel";
  const bool is_ours = source == sdpa::metal::source_of(name);
  return is_ours ? "" : "error: the source is not the library's";
}

}  // namespace

extern "C" {

/// One entry of the argument table: memory of the device, or bytes that are copied at the call.
struct TorchMpsArgument {
  std::int32_t is_buffer;
  void* data;
  std::uint64_t bytes;
};

bool torch_mps_compile(const char* source, char* name, std::size_t name_bytes, char* message,
                       std::size_t message_bytes) {
  const Message said{message, message_bytes};
  try {
    const std::string found = instantiated_name(source);
    const std::string error = compile_error(source, found);
    if (!error.empty()) return said.fail(error);
    return !Message{name, name_bytes}.fail(found);
  } catch (const std::exception& error) {
    return said.fail(error.what());
  }
}

bool torch_mps_launch(const char* kernel, const TorchMpsArgument* arguments, std::int32_t count,
                      const std::uint32_t* threads, const std::uint32_t* group, char* message,
                      std::size_t message_bytes) {
  static std::mutex one_specialization_at_a_time;
  const std::lock_guard lock(one_specialization_at_a_time);
  const Message said{message, message_bytes};
  try {
    sim::Dispatch launch{.function = sdpa::metal::select_function(kernel),
                         .grid = {threads[0], threads[1], threads[2]},
                         .group = {group[0], group[1], group[2]},
                         .grid_unit = sim::GridUnit::kThreads};
    for (int index = 0; index < count; ++index) {
      const TorchMpsArgument& argument = arguments[index];
      launch.bindings.push_back(
          {.kind = argument.is_buffer ? sim::Binding::Kind::kBuffer : sim::Binding::Kind::kBytes,
           .index = index,
           .data = argument.data,
           .bytes = argument.bytes});
    }
    const sim::Result result = sim::run(launch, {.seed = 1});
    return result.ok() || said.fail(result.faults[0]);
  } catch (const std::exception& error) {
    return said.fail(error.what());
  }
}

}  // extern "C"
