// SPDX-License-Identifier: MIT
#include "sdpa/cpu/instruction_set.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace sdpa::cpu {
namespace {

std::atomic<const InstructionSet*> forced{nullptr};

const InstructionSet& find(std::string_view name, std::string_view source) {
  std::string known;
  for (const InstructionSet& set : instruction_sets()) {
    if (set.runs_here && set.name == name) return set;
    if (set.runs_here) known += (known.empty() ? "" : ", ") + std::string(set.name);
  }
  throw std::invalid_argument(std::string(source) + " names the instruction set \"" +
                              std::string(name) + "\"; this processor and build have " + known +
                              ".");
}

const InstructionSet& choose() {
  if (const char* name = std::getenv("MPS_SDPA_ISA"); name != nullptr && *name != '\0')
    return find(name, "MPS_SDPA_ISA");
  for (const InstructionSet& set : instruction_sets())
    if (set.runs_here && set.is_preferred) return set;
  return instruction_sets().back();
}

}  // namespace

const InstructionSet& instruction_set() {
  if (const InstructionSet* set = forced.load(std::memory_order_acquire)) return *set;
  static const InstructionSet& chosen = choose();
  return chosen;
}

void set_instruction_set(std::string_view name) {
  forced.store(name.empty() ? nullptr : &find(name, "set_instruction_set"),
               std::memory_order_release);
}

}  // namespace sdpa::cpu
