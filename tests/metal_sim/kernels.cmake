# SPDX-License-Identifier: MIT
# Compiles Metal kernels for the simulator.
#
#   metal_sim_kernels(<target> HEADERS <file>... [INSTANCES <file>] [NAMESPACE <name>]
#                     [INCLUDE <folder>...])
#
# <target> becomes a shared library; a program that links it can run the kernels by host name.
set(METAL_SIM_DIR ${CMAKE_CURRENT_LIST_DIR} CACHE INTERNAL "")
set(METAL_SIM_MSL ${CMAKE_CURRENT_BINARY_DIR}/msl CACHE INTERNAL "")

# Lanes run on stacks that the sanitizers do not know, so simulated code goes without them. What a
# program tests with a sanitizer is its host code.
set(common -O2 -fno-sanitize=all -ftls-model=initial-exec -fvisibility-inlines-hidden
    -fno-semantic-interposition)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(METAL_SIM_CODE_OPTIONS ${common} -mavx2 -mf16c -mfma CACHE INTERNAL "")
else()
  set(METAL_SIM_CODE_OPTIONS ${common} CACHE INTERNAL "")
endif()

# Every load and store becomes a call (see hooks.cpp); what is not initialised holds a pattern; and
# a half is rounded after each operation, as on a GPU.
set(METAL_SIM_KERNEL_OPTIONS -fsanitize=thread -ftrivial-auto-var-init=pattern
    -fno-strict-aliasing -Wno-attributes -Wno-unknown-pragmas CACHE INTERNAL "")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND METAL_SIM_KERNEL_OPTIONS --param=tsan-instrument-func-entry-exit=0
       -fno-tree-loop-distribute-patterns)
else()
  list(APPEND METAL_SIM_KERNEL_OPTIONS "SHELL:-mllvm -tsan-instrument-func-entry-exit=0"
       "SHELL:-mllvm -tsan-instrument-read-before-write=1" "SHELL:-Xclang -ffloat16-excess-precision=none"
       -Wno-unknown-attributes)
endif()
set(METAL_SIM_KERNEL_OPTIONS ${METAL_SIM_KERNEL_OPTIONS} CACHE INTERNAL "")

function(metal_sim_kernels target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "INSTANCES;NAMESPACE" "HEADERS;INCLUDE")
  list(TRANSFORM arg_HEADERS PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/ REGEX "^[^/]")
  set(options --output ${target}_entries.cpp --preprocessor ${CMAKE_CXX_COMPILER})
  if(arg_INSTANCES)
    cmake_path(ABSOLUTE_PATH arg_INSTANCES)
    list(APPEND options --instances ${arg_INSTANCES})
  endif()
  if(arg_NAMESPACE)
    list(APPEND options --namespace ${arg_NAMESPACE})
  endif()
  add_custom_command(
    OUTPUT ${target}_entries.cpp
    COMMAND ${Python3_EXECUTABLE} ${METAL_SIM_DIR}/entries.py ${options} ${arg_HEADERS}
    DEPENDS ${METAL_SIM_DIR}/entries.py ${arg_INSTANCES} ${arg_HEADERS}
    VERBATIM)
  add_library(${target} SHARED ${CMAKE_CURRENT_BINARY_DIR}/${target}_entries.cpp
                               ${METAL_SIM_DIR}/hooks.cpp)
  set_source_files_properties(${CMAKE_CURRENT_BINARY_DIR}/${target}_entries.cpp PROPERTIES
    COMPILE_OPTIONS "${METAL_SIM_KERNEL_OPTIONS}")
  target_compile_options(${target} PRIVATE ${METAL_SIM_CODE_OPTIONS} -fvisibility=hidden)
  target_include_directories(${target} PRIVATE ${METAL_SIM_MSL} ${CMAKE_CURRENT_SOURCE_DIR}
                                               ${arg_INCLUDE})
  target_link_libraries(${target} PRIVATE metal_sim)
  # Kernels register when their library is loaded, though no symbol of it is used.
  target_link_options(${target} INTERFACE LINKER:--no-as-needed)
endfunction()

# What metal_sim cannot see and Apple's compiler would: address spaces, checked with clang's own, and
# the rules of lint.py. Adds the tests <name>_spaces and <name>_lint.
#
#   metal_sim_check(<name> HEADERS <file>... [INSTANCES <file>] [INCLUDE <folder>...] [LINT <file>...])
#
# LINT: the files to lint, if they are not the headers.
function(metal_sim_check name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "INSTANCES" "HEADERS;INCLUDE;LINT")
  list(TRANSFORM arg_HEADERS PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/ REGEX "^[^/]")
  set(options "")
  if(arg_INSTANCES)
    cmake_path(ABSOLUTE_PATH arg_INSTANCES)
    list(APPEND options --instances ${arg_INSTANCES})
  endif()
  foreach(folder IN LISTS arg_INCLUDE)
    list(APPEND options --include ${folder})
  endforeach()
  add_test(NAME ${name}_spaces COMMAND Python3::Interpreter ${METAL_SIM_DIR}/spaces_test.py
    ${METAL_SIM_MSL} ${CMAKE_BINARY_DIR} ${options} ${arg_HEADERS})
  set_tests_properties(${name}_spaces PROPERTIES SKIP_REGULAR_EXPRESSION "NOT CHECKED"
    RESOURCE_LOCK ziglang)
  if(NOT arg_LINT)
    set(arg_LINT ${arg_HEADERS})
  endif()
  add_test(NAME ${name}_lint COMMAND Python3::Interpreter ${METAL_SIM_DIR}/lint.py ${arg_LINT})
endfunction()
