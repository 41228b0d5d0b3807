// SPDX-License-Identifier: MIT
//
// The Metal kernels, unchanged, as CUDA: one SIMD group is one warp. As in the simulator they are
// compiled once for all specializations; SDPA_MUTANTS takes the kernels with mistakes to choose.
#include <map>
#include <stdexcept>
#include <utility>

#include "tests/metal_cuda/cuda_kernels.h"
#include "tests/metal_cuda/msl_cuda.h"

namespace sdpa {
__constant__ SpecValues device_spec_values;
}

#define spec_values device_spec_values
#define SDPA_UNROLL
#define MUTANT(number) (sdpa::device_spec_values.mutant == number)
using namespace ::metal;
#include "tests/metal_kernels/any_spec.h"
#undef spec_values

namespace sdpa::metal {
namespace {

/// One parameter of a kernel, by its type: buffers and blocks by position, then where the lane is.
template <class P>
struct Take {
  static MSL_DEV P from(CudaArguments& a, int index, int) {
    return static_cast<P>(a.buffers[index]);
  }
};

template <>
struct Take<AttentionParams&> {
  static MSL_DEV AttentionParams& from(CudaArguments& a, int, int) { return a.params; }
};

template <>
struct Take<AttentionScalars&> {
  static MSL_DEV AttentionScalars& from(CudaArguments& a, int, int) { return a.scalars; }
};

template <>
struct Take<uint3> {
  static MSL_DEV uint3 from(CudaArguments&, int, int) {
    return uint3(blockIdx.x, blockIdx.y, blockIdx.z);
  }
};

template <>
struct Take<uint> {  // the last is the lane, one before it the SIMD group

  static MSL_DEV uint from(CudaArguments&, int index, int count) {
    return index + 1 == count ? threadIdx.x % 32 : threadIdx.x / 32;
  }
};

template <class... P, std::size_t... I>
MSL_DEV void pass(void (*function)(P...), CudaArguments& a, std::index_sequence<I...>) {
  function(Take<P>::from(a, int(I), int(sizeof...(P)))...);
}

template <class... P>
MSL_DEV void call(void (*function)(P...), CudaArguments& a) {
  pass(function, a, std::index_sequence_for<P...>());
}

#define SDPA_ENTRY(function)                             \
  template <class T>                                     \
  __global__ void entry_##function(CudaArguments a) {    \
    msl::poison_threadgroup_memory(a.threadgroup_bytes); \
    call(&sdpa::function<AnySpec<T>>, a);                \
  }
#define SDPA_KERNELS(X)                                                                \
  X(forward)                                                                           \
  X(classify) X(split_keys) X(merge) X(delta_of_rows) X(delta_of_scores) X(grad_query) \
      X(grad_key_value) X(grad_mask) X(grad_sinks) X(proto)
SDPA_KERNELS(SDPA_ENTRY)

using Entry = void (*)(CudaArguments);

template <class T>
void add_entries(std::map<std::string, Entry>& table, const std::string& dtype) {
#define SDPA_ADD(function) table[#function "_" + dtype] = entry_##function<T>;
  SDPA_KERNELS(SDPA_ADD)
}

const std::map<std::string, Entry>& entries() {
  static const std::map<std::string, Entry> table = [] {
    std::map<std::string, Entry> made;
    add_entries<float>(made, "float");
#ifndef SDPA_MUTANTS
    add_entries<half>(made, "half");
    add_entries<bfloat>(made, "bfloat");
#endif
    return made;
  }();
  return table;
}

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace

float launch_on_gpu(CudaLaunch launch) {
  const auto found = entries().find(launch.function + "_" + launch.dtype);
  if (found == entries().end())
    throw std::runtime_error("no kernel " + launch.function + "_" + launch.dtype);
  cudaFuncAttributes attributes;
  require(cudaFuncGetAttributes(&attributes, found->second), "attributes");
  launch.arguments.threadgroup_bytes = unsigned(attributes.sharedSizeBytes);
  require(cudaMemcpyToSymbol(device_spec_values, &launch.spec, sizeof launch.spec), "constants");
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "event");
  require(cudaEventCreate(&end), "event");
  require(cudaEventRecord(begin), "event");
  found->second<<<dim3(launch.grid[0], launch.grid[1], launch.grid[2]), launch.threads>>>(
      launch.arguments);
  require(cudaGetLastError(), launch.function.c_str());
  require(cudaEventRecord(end), "event");
  require(cudaDeviceSynchronize(), launch.function.c_str());
  float milliseconds = 0;
  require(cudaEventElapsedTime(&milliseconds, begin, end), "event");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return milliseconds;
}

CudaBuffer::CudaBuffer(std::size_t bytes) : bytes_(bytes) {
  require(cudaMalloc(&data_, bytes), "cudaMalloc");
  require(cudaMemset(data_, 0xff, bytes), "cudaMemset");
}

CudaBuffer::~CudaBuffer() { cudaFree(data_); }

void CudaBuffer::write(const void* host) {
  require(cudaMemcpy(data_, host, bytes_, cudaMemcpyHostToDevice), "copy to the GPU");
}

void CudaBuffer::read(void* host) const {
  require(cudaMemcpy(host, data_, bytes_, cudaMemcpyDeviceToHost), "copy from the GPU");
}

std::string gpu_name() {
  cudaDeviceProp properties;
  return cudaGetDeviceProperties(&properties, 0) == cudaSuccess ? properties.name : "";
}

}  // namespace sdpa::metal
