// SPDX-License-Identifier: MIT
// How kernels register: by generated code (entries.py), which knows each parameter's attribute.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "lane.h"

namespace sim {

/// What a kernel's parameter is bound to.
enum class Source {
  kBuffer,
  kThreadgroupMemory,
  kThreadgroupPosition,
  kThreadgroupsPerGrid,
  kThreadPosition,
  kThreadsPerThreadgroup,
  kDispatchThreadsPerThreadgroup,
  kThreadPositionInGrid,
  kThreadsPerGrid,
  kThreadIndex,
  kSimdgroupIndex,
  kLaneIndex,
  kSimdgroupsPerThreadgroup,
  kThreadsPerSimdgroup,
  kQuadLane,
  kQuadgroupIndex,
};

struct Parameter {
  Source source;
  int index;  // of the buffer or the threadgroup memory
  const char* name;
  bool read_only;    // declared const or constant
  bool is_constant;  // in the constant address space
  bool is_optional;  // there only if a function constant says so
};

/// What C++ knows about a parameter's type.
struct ParameterType {
  size_t bytes, align;  // of what a pointer or reference names
  bool is_reference;
};

struct Kernel;
/// Calls the kernel for one lane; `addresses` holds one entry per parameter, null for built-ins.
using Entry = void (*)(const Lane& lane, const Kernel& kernel, void* const* addresses);

struct Kernel {
  std::string name;
  Entry entry;
  std::vector<ParameterType> types;
  std::vector<Parameter> parameters;
  int max_threads;
};

/// A [[function_constant]] variable.
struct FunctionConstant {
  int index;
  void* variable;
  size_t bytes;
};

/// Adds kernels and constants of one kernel library when it is loaded.
struct Registration {
  Registration(std::vector<Kernel> kernels, std::vector<FunctionConstant> constants);
};

/// Null if there is no such kernel.
const Kernel* find_kernel(const std::string& name);

}  // namespace sim
