// SPDX-License-Identifier: MIT
#pragma once

namespace sdpa {

/// What the kernels that are compiled once for all specializations (any_spec.h) run as. Set before
/// a launch; launches of the simulator never overlap.
struct SpecValues {
  int qk, v, chunks, tile, groups, features;
  int mutant;  ///< the mistake to make, of mutants/mutations.py; 0: none
};

extern SpecValues spec_values;

}  // namespace sdpa
