# SPDX-License-Identifier: MIT
# A toolchain for macOS on Apple silicon that runs on Linux: PyPI's ziglang, found by the Python that
# runs the build. The result needs nothing of a Mac but libSystem.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_SYSROOT "" CACHE STRING "" FORCE)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

if(NOT SDPA_ZIG)
  execute_process(
    COMMAND ${SDPA_PYTHON} -c "import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), 'zig'))"
    OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE SDPA_ZIG COMMAND_ERROR_IS_FATAL ANY)
endif()
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SDPA_ZIG SDPA_PYTHON)

set(target -target aarch64-macos.14.0)
set(CMAKE_C_COMPILER ${SDPA_ZIG} cc ${target})
set(CMAKE_CXX_COMPILER ${SDPA_ZIG} c++ ${target})

# CMake calls these without arguments of ours.
foreach(tool IN ITEMS ar ranlib)
  set(script ${CMAKE_BINARY_DIR}/zig-${tool})
  if(NOT EXISTS ${script})
    file(WRITE ${script} "#!/bin/sh\nexec '${SDPA_ZIG}' ${tool} \"$@\"\n")
    file(CHMOD ${script} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  endif()
  string(TOUPPER ${tool} variable)
  set(CMAKE_${variable} ${script} CACHE FILEPATH "" FORCE)
endforeach()
set(CMAKE_INSTALL_NAME_TOOL true CACHE FILEPATH "" FORCE)  # nothing is renamed when installed
