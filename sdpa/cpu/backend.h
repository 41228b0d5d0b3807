// SPDX-License-Identifier: MIT
#pragma once

#include "sdpa/backend.h"

namespace sdpa::cpu {

/// Own flash kernels for any CPU, one translation unit an instruction set.
const Backend& backend();

}  // namespace sdpa::cpu
