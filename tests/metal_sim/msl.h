// SPDX-License-Identifier: MIT
// Metal's standard library for C++: enough of it for attention kernels. metal_stdlib and its
// siblings include this. What a kernel uses of the C++ library must be included before: from here
// on, MSL's keywords are macros.
#pragma once
#include "msl_atomic.h"
#include "msl_math.h"
#include "msl_matrix.h"
#include "msl_quadgroup.h"
#include "msl_scalar.h"
#include "msl_simdgroup.h"
#include "msl_vector.h"
#ifdef MSL_SPACES
#include "msl_spaces.h"
#endif
// Last:
#include "msl_keywords.h"
