# SPDX-License-Identifier: MIT
# Writes a C++ file that holds the text of the Metal kernels: the files in SOURCES in that order,
# without their includes of each other. Run as: cmake -DSOURCES=a;b -DOUTPUT=file -P embed_metal.cmake
set(text "")
foreach(source IN LISTS SOURCES)
  file(READ ${source} part)
  string(REGEX REPLACE "#pragma once\n" "" part "${part}")
  string(REGEX REPLACE "#include \"[^\"]*\"\n" "" part "${part}")
  string(REGEX REPLACE "// SPDX[^\n]*\n" "" part "${part}")
  string(APPEND text "${part}")
endforeach()
file(WRITE ${OUTPUT} "// Generated from sdpa/metal/kernels.
#include \"sdpa/metal/kernel_source.h\"

namespace sdpa::metal {

const char* const kKernelSource = R\"metal(${text})metal\";

}  // namespace sdpa::metal
")
