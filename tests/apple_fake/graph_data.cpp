// SPDX-License-Identifier: MIT
// What a graph's executable reads, writes and is encoded to.
#include <cstring>

#include "sdpa/element.h"
#include "tests/apple_fake/graph.h"

namespace sdpa::apple_fake {
namespace {

/// macOS 15 stops the process for an array of more bytes.
constexpr std::int64_t kMostBytes = std::int64_t{1} << 32;

DType dtype_of(Element type) {
  switch (type) {
    case Element::kFloat16:
      return DType::kFloat16;
    case Element::kBFloat16:
      return DType::kBFloat16;
    case Element::kBool:
      return DType::kBool;
    default:
      return DType::kFloat32;
  }
}

void check_room(const Buffer& buffer, std::size_t offset, const Shape& shape, Element type) {
  FakeRuntime& runtime = current_runtime();
  const std::int64_t bytes = metal::element_count(shape) * metal::size_bytes(type);
  if (bytes >= kMostBytes) {
    runtime.fail(current_message() + ": an array of " + std::to_string(bytes) + " bytes");
  }
  if (offset % static_cast<std::size_t>(metal::size_bytes(type)) != 0) {
    runtime.fail(current_message() + ": offset " + std::to_string(offset) + " splits an element");
  }
  if (offset + static_cast<std::size_t>(bytes) > buffer.bytes) {
    runtime.fail(current_message() + ": the buffer is too small for the shape");
  }
}

/// As one row, to read and write by element.
TensorView row_of(const GraphData& data) {
  const auto* buffer = static_cast<Buffer*>(data.buffer.id()->body.get());
  return dense(buffer->data + data.offset, dtype_of(data.type),
               {1, 1, 1, metal::element_count(data.shape)});
}

Made make_descriptor(ClassInfo&, DataType type, In<Array> extents) {
  auto descriptor = std::make_unique<NDArrayDescriptor>();
  descriptor->shape = shape_of(*extents.get());
  descriptor->type = element_of(type);
  return {current_runtime().create("MPSNDArrayDescriptor", std::move(descriptor))};
}

struct Device : Body {};

Made make_device(ClassInfo&, apple::Id device) {
  require_device(device);
  return make<Device>("MPSGraphDevice");
}

struct CommandQueue;

Made make_commands(ClassInfo&, apple::Id queue) {
  const Made root = make_command_buffer(queue);
  if (!root.object) return {};
  auto commands = std::make_unique<ShadersCommandBuffer>();
  commands->root = Hold(root);
  return {current_runtime().create("MPSCommandBuffer", std::move(commands))};
}

}  // namespace

Element element_of(DataType type) {
  switch (static_cast<std::uint32_t>(type)) {
    case 0x10000020:
      return Element::kFloat32;
    case 0x10000010:
      return Element::kFloat16;
    case 0x90000010:
      return Element::kBFloat16;
    case 0x80000008:
      return Element::kBool;
    case 0x20000020:
      return Element::kInt32;
    default:
      current_runtime().fail(current_message() + ": MPSDataType " +
                             std::to_string(static_cast<std::uint32_t>(type)));
  }
}

Shape shape_of(const Array& numbers) {
  Shape shape;
  for (const Hold& number : numbers.objects) {
    shape.push_back(static_cast<std::int64_t>(body_of<Number>(number.id(), "extent")->value));
  }
  return shape;
}

Made GraphData::init_with_buffer(In<Buffer> from, In<Array> extents, DataType data_type) {
  shape = shape_of(*extents.get());
  type = element_of(data_type);
  check_room(*from.get(), 0, shape, type);
  buffer = Hold(from->self);
  return {self};
}

Made GraphData::init_with_array(In<NDArray> array) {
  buffer = array->buffer;
  offset = array->offset;
  shape = array->shape;
  type = array->type;
  return {self};
}

values::Value GraphData::read() const {
  const TensorView row = row_of(*this);
  values::Value value{type, shape, {}};
  for (std::int64_t n = 0; n < row.shape[3]; ++n) {
    value.data.push_back(sdpa::read(row, 0, 0, 0, n));
  }
  return value;
}

void GraphData::write(const values::Value& value) const {
  const TensorView row = row_of(*this);
  for (std::int64_t n = 0; n < row.shape[3]; ++n) {
    sdpa::write(row, 0, 0, 0, n, value.data.at(static_cast<std::size_t>(n)));
  }
}

Made NDArray::init(In<Buffer> from, NSUInteger first_byte, In<NDArrayDescriptor> descriptor) {
  if (!descriptor->is_packed) {
    current_runtime().note(current_message() +
                           ": rows are padded where preferPackedRows is not set");
  }
  shape = descriptor->shape;
  type = descriptor->type;
  check_room(*from.get(), first_byte, shape, type);
  buffer = Hold(from->self);
  offset = first_byte;
  return {self};
}

Made ShadersCommandBuffer::root_buffer() {
  return {current_runtime().retain(root.id())};  // autoreleased when it is given out
}

void ShadersCommandBuffer::go_on() {
  const apple::Id before = root.id();
  commit(before);
  root = Hold(make_command_buffer(queue_of(before)));
}

void install_graph_data(FakeRuntime& runtime) {
  define<"MPSCommandBuffer">(runtime)
      .on<"commandBufferFromCommandQueue:", &make_commands>()
      .on<"rootCommandBuffer", &ShadersCommandBuffer::root_buffer>();
  define<"MPSNDArrayDescriptor">(runtime)
      .on<"descriptorWithDataType:shape:", &make_descriptor>()
      .on<"setPreferPackedRows:", &NDArrayDescriptor::set_packed>();
  define<"MPSNDArray">(runtime)
      .on<"alloc", &make_new<NDArray>>()
      .on<"initWithBuffer:offset:descriptor:", &NDArray::init>();
  define<"MPSGraphDevice">(runtime).on<"deviceWithMTLDevice:", &make_device>();
  define<"MPSGraphTensorData">(runtime)
      .on<"alloc", &make_new<GraphData>>()
      .on<"initWithMTLBuffer:shape:dataType:", &GraphData::init_with_buffer>()
      .on<"initWithMPSNDArray:", &GraphData::init_with_array>();
}

}  // namespace sdpa::apple_fake
