// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "sdpa/metal/graph.h"
#include "tests/apple_fake/metal.h"
#include "tests/mpsgraph/values.h"

/// The objects of the fake MPSGraph that more than one file knows.
namespace sdpa::apple_fake {

using metal::Element;
using metal::NodeId;
using metal::Shape;

/// MPSDataType, as it travels.
enum class DataType : std::uint32_t {};

Element element_of(DataType type);
Shape shape_of(const Array& numbers);

/// Runs code that builds a graph; what it refuses is a mistake of the caller.
template <class Code>
auto within_rules(const Code& code) {
  try {
    return code();
  } catch (const std::logic_error& error) {
    current_runtime().fail(current_message() + ": " + error.what());
  }
}

/// Memory that is read and written as a tensor.
struct GraphData : Body {
  Hold buffer;
  std::size_t offset = 0;
  Shape shape;
  Element type = Element::kFloat32;

  Made init_with_buffer(In<Buffer> from, In<Array> extents, DataType data_type);
  Made init_with_array(In<struct NDArray> array);

  values::Value read() const;
  void write(const values::Value& value) const;
};

struct NDArrayDescriptor : Body {
  Shape shape;
  Element type = Element::kFloat32;
  bool is_packed = false;

  void set_packed(bool packed) { is_packed = packed; }
};

struct NDArray : Body {
  Hold buffer;
  std::size_t offset = 0;
  Shape shape;
  Element type = Element::kFloat32;

  Made init(In<Buffer> from, NSUInteger first_byte, In<NDArrayDescriptor> descriptor);
};

/// Command buffers of one queue, one after the other, under one name.
struct ShadersCommandBuffer : Body {
  Hold root;

  Made root_buffer();

  /// commitAndContinue: what was encoded so far goes off.
  void go_on();
};

void install_graph_data(FakeRuntime& runtime);

}  // namespace sdpa::apple_fake
