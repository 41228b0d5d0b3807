# SPDX-License-Identifier: MIT
# Kernels of MLX and torch. Their sources exist only after third_party_test.py has fetched them, so
# nothing of this is built by default; that script builds and runs it.
set(third_party ${PROJECT_BINARY_DIR}/third_party)
set(mlx_kernels ${third_party}/mlx/mlx/backend/metal/kernels)
set(torch_kernels ${third_party}/torch/ATen/native/mps/kernels)

metal_sim_kernels(mlx_steel INSTANCES mlx_steel.metal INCLUDE ${third_party}/mlx
  HEADERS mlx_prelude.h ${mlx_kernels}/steel/attn/kernels/steel_attention.h)
metal_sim_kernels(mlx_vector INSTANCES mlx_vector.metal INCLUDE ${third_party}/mlx
  HEADERS mlx_prelude.h ${mlx_kernels}/sdpa_vector.h)
metal_sim_kernels(torch_attention INSTANCES torch_attention.metal INCLUDE ${third_party}/torch
  HEADERS torch_prelude.h ${torch_kernels}/PrefillAttention.h ${torch_kernels}/DecodeAttention.h)

# How MLX and torch launch them; needs no source of theirs.
add_library(other_attention STATIC mlx_attention.cpp torch_attention.cpp)
target_compile_options(other_attention PRIVATE -Wall -Wextra -Werror)
target_link_libraries(other_attention PUBLIC metal_sim sdpa_cases)

foreach(kernels IN ITEMS mlx_steel mlx_vector torch_attention)
  add_executable(${kernels}_test ${kernels}_test.cpp)
  target_compile_options(${kernels}_test PRIVATE -Wall -Wextra -Werror)
  target_link_libraries(${kernels}_test PRIVATE other_attention ${kernels} GTest::gtest_main)
  set_target_properties(${kernels} ${kernels}_test PROPERTIES EXCLUDE_FROM_ALL TRUE)
endforeach()

function(add_third_party_test project)
  list(TRANSFORM ARGN REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE programs)
  add_test(NAME metal_sim_${project} COMMAND Python3::Interpreter
    ${CMAKE_CURRENT_SOURCE_DIR}/third_party_test.py ${project} ${PROJECT_BINARY_DIR} ${programs})
  set_tests_properties(metal_sim_${project} PROPERTIES SKIP_REGULAR_EXPRESSION "NOT CHECKED"
    RESOURCE_LOCK metal_sim_third_party)
endfunction()

add_third_party_test(mlx mlx_steel_test mlx_vector_test)
add_third_party_test(torch torch_attention_test)
