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

# Debian's pyconfig.h only includes another for each of Debian's processors, and stops at a Mac. The
# one that it includes here describes a 64-bit system with POSIX threads, as a Mac is.
if(SDPA_PYTHON AND NOT EXISTS ${CMAKE_BINARY_DIR}/python-headers/pyconfig.h)
  execute_process(
    COMMAND ${SDPA_PYTHON} -c "
import os, sysconfig
headers = sysconfig.get_paths()['include']
folder, name = os.path.split(headers)
own = os.path.join(folder, sysconfig.get_config_var('MULTIARCH') or '', name, 'pyconfig.h')
print(headers, own if os.path.exists(own) else sysconfig.get_config_h_filename(), sep=';')"
    OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE paths COMMAND_ERROR_IS_FATAL ANY)
  list(GET paths 0 headers)
  list(GET paths 1 configuration)
  file(COPY ${headers}/ DESTINATION ${CMAKE_BINARY_DIR}/python-headers)
  file(COPY_FILE ${configuration} ${CMAKE_BINARY_DIR}/python-headers/pyconfig.h)
endif()
set(Python_INCLUDE_DIR ${CMAKE_BINARY_DIR}/python-headers CACHE PATH "" FORCE)
