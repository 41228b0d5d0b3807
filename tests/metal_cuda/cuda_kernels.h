// SPDX-License-Identifier: MIT
#pragma once

// What the host asks of the kernels on an NVIDIA GPU.

#include <cstddef>
#include <string>

#include "sdpa/params.h"
#include "tests/metal_kernels/spec_values.h"

namespace sdpa::metal {

constexpr int kMaxCudaBuffers = 12;

/// What a launch passes: [[buffer(i)]] is buffers[i], where it is a tensor.
struct CudaArguments {
  void* buffers[kMaxCudaBuffers];
  AttentionParams params;
  AttentionScalars scalars;
  unsigned threadgroup_bytes;
};

struct CudaLaunch {
  std::string function;  ///< "forward", "grad_query", ...
  std::string dtype;     ///< "float", "half", "bfloat"
  SpecValues spec;
  unsigned grid[3];
  unsigned threads;
  CudaArguments arguments;
};

/// Runs a launch to its end. Returns milliseconds. Throws std::runtime_error with CUDA's words.
float launch_on_gpu(CudaLaunch launch);

/// Device memory, filled with NaN bytes.
class CudaBuffer {
 public:
  explicit CudaBuffer(std::size_t bytes);
  CudaBuffer(const CudaBuffer&) = delete;
  ~CudaBuffer();

  void write(const void* host);
  void read(void* host) const;

  void* data() const { return data_; }

 private:
  std::size_t bytes_;
  void* data_ = nullptr;
};

/// "NVIDIA H200"; empty where there is no GPU.
std::string gpu_name();

}  // namespace sdpa::metal
