// SPDX-License-Identifier: MIT
#pragma once

// Comes before the mutated kernels: which mistake they make.
#include "tests/metal_kernels/prelude.h"
#include "tests/metal_kernels/spec_values.h"

#define MUTANT(number) (sdpa::spec_values.mutant == number)
