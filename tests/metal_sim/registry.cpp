// SPDX-License-Identifier: MIT
#include "registry.h"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "kernel.h"

namespace sim {
namespace {

struct Library {
  std::vector<FunctionConstant> constants;
};

struct Registered {
  Kernel kernel;
  std::shared_ptr<Library> library;
};

std::map<std::string, Registered>& table() {
  static std::map<std::string, Registered> kernels;
  return kernels;
}

bool is_bound_by_host(const Parameter& parameter) {
  return parameter.source == Source::kBuffer || parameter.source == Source::kThreadgroupMemory;
}

ArgumentInfo describe(const Parameter& parameter, const ParameterType& type) {
  const auto kind =
      parameter.source == Source::kBuffer ? Binding::Kind::kBuffer : Binding::Kind::kThreadgroup;
  return {.kind = kind,
          .index = parameter.index,
          .name = parameter.name,
          .read_only = parameter.read_only,
          .is_constant = parameter.is_constant,
          .element_size = type.bytes};
}

}  // namespace

Registration::Registration(std::vector<Kernel> kernels, std::vector<FunctionConstant> constants) {
  const auto library = std::make_shared<Library>(Library{std::move(constants)});
  for (Kernel& kernel : kernels) {
    std::string name = kernel.name;
    if (!table().emplace(name, Registered{std::move(kernel), library}).second)
      throw std::invalid_argument("two kernels have the host name " + name);
  }
}

const Kernel* find_kernel(const std::string& name) {
  const auto found = table().find(name);
  return found == table().end() ? nullptr : &found->second.kernel;
}

std::vector<FunctionConstant> constants_of(const std::string& name) {
  return table().at(name).library->constants;
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const auto& [name, registered] : table()) names.push_back(name);
  return names;
}

KernelInfo kernel_info(const std::string& name) {
  const Kernel* kernel = find_kernel(name);
  if (!kernel) return {};
  KernelInfo info{name, {}, kernel->max_threads};
  for (size_t i = 0; i < kernel->parameters.size(); i++)
    if (is_bound_by_host(kernel->parameters[i]))
      info.arguments.push_back(describe(kernel->parameters[i], kernel->types[i]));
  return info;
}

}  // namespace sim
