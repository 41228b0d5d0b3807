// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/cpu/instruction_set.h"

namespace sdpa::cpu {

/// The gradients that `tensors` asks for, by the kernels of one instruction set.
void backward(const Problem& problem, const BackwardTensors& tensors, const Kernels& kernels);

}  // namespace sdpa::cpu
