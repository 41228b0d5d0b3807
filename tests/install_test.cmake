# SPDX-License-Identifier: MIT
# Installs the build in BUILD_DIR into an empty folder, builds the examples against it as a stranger
# would, by find_package alone, and runs them. Wants BUILD_DIR, SOURCE_DIR, WORK_DIR, COMPILER, FLAGS.

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY OUTPUT_VARIABLE output)
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${WORK_DIR}/prefix)
run(${CMAKE_COMMAND} -S ${SOURCE_DIR}/examples -B ${WORK_DIR}/build -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix -DCMAKE_CXX_COMPILER=${COMPILER}
    "-DCMAKE_CXX_FLAGS=${FLAGS}")
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${WORK_DIR}/build/attention_example)
if(NOT output MATCHES "float32 B1 H8/2 L256 D64 causal ran on cpu")
  message(FATAL_ERROR "the example printed: ${output}")
endif()
