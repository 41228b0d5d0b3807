// SPDX-License-Identifier: MIT
// One dispatch: checked as Metal's validation layer would, then spread over threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "registry.h"
#include "worker.h"

namespace sim {
namespace {

unsigned volume(const Size& size) { return size.x * size.y * size.z; }

std::string size_text(const Size& size) {
  return std::to_string(size.x) + " x " + std::to_string(size.y) + " x " + std::to_string(size.z);
}

const Binding* find_binding(const Dispatch& dispatch, int index, bool threadgroup) {
  for (const Binding& binding : dispatch.bindings)
    if (binding.index == index && (binding.kind == Binding::Kind::kThreadgroup) == threadgroup)
      return &binding;
  return nullptr;
}

std::string group_fault(const Dispatch& dispatch, const Kernel& kernel) {
  const unsigned threads = volume(dispatch.group);
  const int limit = std::min(kernel.max_threads, kMaxThreads);
  if (!threads || threads > unsigned(limit))
    return "a threadgroup of " + size_text(dispatch.group) + " threads; " + kernel.name +
           " allows 1 to " + std::to_string(limit);
  if (!volume(dispatch.grid)) return "an empty grid, " + size_text(dispatch.grid);
  return {};
}

std::string argument_name(const Parameter& parameter) {
  return "argument " + std::to_string(parameter.index) + " (" + parameter.name + ")";
}

std::string buffer_fault(const Binding& binding, const Parameter& parameter,
                         const ParameterType& type) {
  if (type.is_reference && binding.bytes < type.bytes)
    return argument_name(parameter) + " is bound to " + std::to_string(binding.bytes) +
           " bytes, its type has " + std::to_string(type.bytes);
  const size_t align = std::min<size_t>(type.align, 16);
  const bool is_copied = binding.kind == Binding::Kind::kBytes;
  if (!is_copied && reinterpret_cast<uintptr_t>(binding.data) % align)
    return argument_name(parameter) + " is not aligned to " + std::to_string(align) + " bytes";
  return {};
}

std::string binding_fault(const Binding& binding) {
  const std::string name = "argument " + std::to_string(binding.index);
  if (binding.index < 0 || binding.index >= kMaxBuffers)
    return name + " is out of range, 0 to " + std::to_string(kMaxBuffers - 1) + " are allowed";
  if (binding.kind == Binding::Kind::kBytes && binding.bytes > kMaxInlineBytes)
    return name + " sets " + std::to_string(binding.bytes) + " bytes inline, at most " +
           std::to_string(kMaxInlineBytes) + " are allowed";
  return {};
}

std::string parameter_fault(const Dispatch& dispatch, const Parameter& parameter,
                            const ParameterType& type) {
  if (parameter.source == Source::kThreadgroupMemory) {
    const Binding* binding = find_binding(dispatch, parameter.index, true);
    if (!binding) return "no length is set for threadgroup " + argument_name(parameter);
    if (binding->bytes % 16)
      return "the length of threadgroup " + argument_name(parameter) + " is " +
             std::to_string(binding->bytes) + ", not a multiple of 16";
  }
  if (parameter.source != Source::kBuffer) return {};
  const Binding* binding = find_binding(dispatch, parameter.index, false);
  if (!binding || !binding->data)
    return type.is_reference && !parameter.is_optional ? argument_name(parameter) + " is not bound"
                                                       : "";
  return buffer_fault(*binding, parameter, type);
}

// What is wrong with the dispatch before anything has run; empty if nothing is.
std::string dispatch_fault(const Dispatch& dispatch, const Kernel& kernel) {
  std::string fault = group_fault(dispatch, kernel);
  for (const Binding& binding : dispatch.bindings)
    if (fault.empty()) fault = binding_fault(binding);
  for (size_t i = 0; i < kernel.parameters.size() && fault.empty(); i++)
    fault = parameter_fault(dispatch, kernel.parameters[i], kernel.types[i]);
  return fault.empty() ? fault : fault + ", in a dispatch of " + kernel.name;
}

std::set<const void*> defined_constants;

// Sets the library's function constants; those that the dispatch does not name are undefined.
std::string set_constants(const Dispatch& dispatch) {
  defined_constants.clear();
  for (const FunctionConstant& constant : constants_of(dispatch.function)) {
    memset(constant.variable, 0, constant.bytes);
    for (const Constant& value : dispatch.constants) {
      if (value.index != constant.index) continue;
      if (value.bytes != constant.bytes)
        return "function constant " + std::to_string(value.index) + " has " +
               std::to_string(constant.bytes) + " bytes, " + std::to_string(value.bytes) +
               " are given";
      memcpy(constant.variable, value.data, value.bytes);
      defined_constants.insert(constant.variable);
    }
  }
  return {};
}

unsigned divide_up(unsigned a, unsigned b) { return (a + b - 1) / b; }

void set_grid(Launch& launch, const Dispatch& dispatch) {
  const Size &grid = dispatch.grid, &group = dispatch.group;
  launch.group = group;
  launch.grid_unit = dispatch.grid_unit;
  if (dispatch.grid_unit == GridUnit::kThreadgroups) {
    launch.threadgroups = grid;
    launch.threads = {grid.x * group.x, grid.y * group.y, grid.z * group.z};
  } else {
    launch.threadgroups = {divide_up(grid.x, group.x), divide_up(grid.y, group.y),
                           divide_up(grid.z, group.z)};
    launch.threads = grid;
  }
}

void call_kernel(const Lane& lane, const Launch& launch) {
  const auto& kernel = *static_cast<const Kernel*>(launch.kernel);
  void* addresses[64];
  for (size_t i = 0; i < launch.slots.size(); i++) {
    const Parameter& parameter = kernel.parameters[i];
    addresses[i] = parameter.source == Source::kThreadgroupMemory
                       ? current_worker->threadgroup_argument(parameter.index)
                       : launch.slots[i];
  }
  kernel.entry(lane, kernel, addresses);
}

// The machine: memory and workers outlive a launch, because making them is slow.
class Machine {
 public:
  Result run(const Dispatch& dispatch, const Options& options, const Kernel& kernel);

 private:
  void bind(Launch& launch, const Dispatch& dispatch, const Kernel& kernel);
  void spread(const Launch& launch, int threads, Result& result);
  void work(Worker& worker, const Launch& launch);

  DeviceMemory device_;
  std::vector<std::unique_ptr<Worker>> workers_;
  uint64_t next_serial_ = 1;
  std::atomic<uint64_t> next_threadgroup_ = 0;
  std::atomic<bool> has_fault_ = false;
};

void Machine::bind(Launch& launch, const Dispatch& dispatch, const Kernel& kernel) {
  device_.place(dispatch.bindings, kernel_info(kernel.name).arguments);
  for (const Parameter& parameter : kernel.parameters)
    launch.slots.push_back(parameter.source == Source::kBuffer ? device_.address(parameter.index)
                                                               : nullptr);
  launch.threadgroup_bytes.resize(kMaxBuffers);
  for (const Binding& binding : dispatch.bindings)
    if (binding.kind == Binding::Kind::kThreadgroup)
      launch.threadgroup_bytes[size_t(binding.index)] = binding.bytes;
}

Result Machine::run(const Dispatch& dispatch, const Options& options, const Kernel& kernel) {
  Launch launch;
  launch.function = dispatch.function;
  set_grid(launch, dispatch);
  launch.seed = options.seed;
  launch.device_races = options.device_races;
  launch.threadgroup_races = options.threadgroup_races;
  launch.first_serial = next_serial_;
  launch.device = &device_;
  launch.call = call_kernel;
  launch.kernel = &kernel;
  next_serial_ += volume(launch.threadgroups);
  bind(launch, dispatch, kernel);
  Result result;
  const int cores = std::max(1, int(std::thread::hardware_concurrency()));
  const int wanted = options.threads > 0 ? options.threads : cores;
  spread(launch, std::min(wanted, int(volume(launch.threadgroups))), result);
  device_.retrieve();
  return result;
}

void Machine::work(Worker& worker, const Launch& launch) {
  worker.begin(launch);
  const uint64_t count = volume(launch.threadgroups);
  for (uint64_t i; !has_fault_ && (i = next_threadgroup_++) < count;)
    if (!worker.run_threadgroup(i)) has_fault_ = true;
  worker.end();
}

void Machine::spread(const Launch& launch, int threads, Result& result) {
  next_threadgroup_ = 0;
  has_fault_ = false;
  while (int(workers_.size()) < threads) workers_.push_back(std::make_unique<Worker>());
  std::vector<std::jthread> others;
  for (int i = 1; i < threads; i++)
    others.emplace_back([this, &launch, i] { work(*workers_[size_t(i)], launch); });
  work(*workers_[0], launch);
  others.clear();
  for (int i = 0; i < threads; i++) {
    const Worker& worker = *workers_[size_t(i)];
    result.counters += worker.counters();
    if (!worker.fault().empty()) result.faults.push_back(worker.fault());
  }
}

Machine& machine() {
  static Machine instance;
  return instance;
}

}  // namespace

Result run(const Dispatch& dispatch, const Options& options) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const Kernel* kernel = find_kernel(dispatch.function);
  if (!kernel) return {{}, {"there is no kernel named " + dispatch.function}};
  std::string fault = dispatch_fault(dispatch, *kernel);
  if (fault.empty()) fault = set_constants(dispatch);
  if (!fault.empty()) return {{}, {fault}};
  return machine().run(dispatch, options, *kernel);
}

bool is_constant_defined(const void* variable) { return defined_constants.count(variable) != 0; }

Counters& Counters::operator+=(const Counters& other) {
  matrix_multiplies += other.matrix_multiplies;
  matrix_loads += other.matrix_loads;
  matrix_stores += other.matrix_stores;
  shuffles += other.shuffles;
  reductions += other.reductions;
  simdgroup_barriers += other.simdgroup_barriers;
  threadgroup_barriers += other.threadgroup_barriers;
  threadgroups += other.threadgroups;
  exponentials += other.exponentials;
  atomics += other.atomics;
  device_bytes_read += other.device_bytes_read;
  device_bytes_written += other.device_bytes_written;
  constant_bytes_read += other.constant_bytes_read;
  threadgroup_bytes_read += other.threadgroup_bytes_read;
  threadgroup_bytes_written += other.threadgroup_bytes_written;
  threadgroup_memory = std::max(threadgroup_memory, other.threadgroup_memory);
  return *this;
}

}  // namespace sim
