// SPDX-License-Identifier: MIT
#pragma once

// The parts of DLPack that we use, declared from its specification (version 1.3): how a tensor is
// described across libraries, and the table of C functions that a tensor type offers under
// `__dlpack_c_exchange_api__`. Layouts are fixed by the specification; the asserts keep ours to it.

#include <cstddef>
#include <cstdint>

namespace mps_sdpa::dlpack {

struct Version {
  std::uint32_t major, minor;
};

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kMetal = 8 };

struct Device {
  std::int32_t type, index;
};

enum TypeCode : std::uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kBFloat = 4,
  kComplex = 5,
  kBool = 6
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

/// A tensor that somebody else owns. Strides are in elements.
struct Tensor {
  void* data;
  Device device;
  std::int32_t rank;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

/// A tensor with its owner.
struct ManagedTensor {
  Version version;
  void* context;
  void (*deleter)(ManagedTensor*);
  std::uint64_t flags;
  Tensor tensor;
};

using SetError = void (*)(void* context, const char* kind, const char* message);

/// The table of functions. Those returning int give 0, or -1 with a Python error set.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  int (*allocate)(Tensor* prototype, ManagedTensor** out, void* context, SetError set_error);
  int (*own_from_object)(void* object, ManagedTensor** out);
  int (*object_from_owned)(ManagedTensor* tensor, void** object);
  int (*describe)(void* object, Tensor* out);  ///< may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t index, void** stream);
};

static_assert(sizeof(Tensor) == 48 && offsetof(Tensor, shape) == 24);
static_assert(sizeof(ManagedTensor) == 80 && offsetof(ManagedTensor, tensor) == 32);
static_assert(sizeof(ExchangeApi) == 56);

}  // namespace mps_sdpa::dlpack
