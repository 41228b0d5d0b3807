// SPDX-License-Identifier: MIT
#include "sdpa/metal/mpsgraph.h"

#include <array>

#include "sdpa/metal/foundation.h"

namespace sdpa::metal {

using apple::class_of;
using apple::Error;
using apple::Handle;
using apple::Id;
using apple::kNil;
using apple::MPSCommandBuffer;
using apple::MPSGraph;
using apple::MPSGraphDevice;
using apple::MPSGraphExecutable;
using apple::MPSGraphSDPADescriptor;
using apple::MPSGraphShapedType;
using apple::MPSGraphTensor;
using apple::MPSGraphTensorData;
using apple::MPSNDArray;
using apple::MPSNDArrayDescriptor;
using apple::MTLDevice;
using apple::NSArray;
using apple::NSInteger;
using apple::NSUInteger;
using apple::Ref;
using apple::send;
using apple::operator""_sel;

namespace {

constexpr const char* kShaders =
    "/System/Library/Frameworks/MetalPerformanceShaders.framework/MetalPerformanceShaders";
constexpr const char* kShadersGraph =
    "/System/Library/Frameworks/MetalPerformanceShadersGraph.framework/"
    "MetalPerformanceShadersGraph";

/// What a compiled node is taken to cost. Apple does not tell; a guess, not measured.
constexpr std::size_t kNodeBytes = 64 << 10;

enum class MPSDataType : std::uint32_t {
  kFloat32 = 0x10000020,
  kFloat16 = 0x10000010,
  kBFloat16 = 0x90000010,
  kBool = 0x80000008,
  kInt32 = 0x20000020,
};

MPSDataType data_type(Element element) {
  constexpr std::array types{MPSDataType::kFloat32, MPSDataType::kFloat16, MPSDataType::kBFloat16,
                             MPSDataType::kBool, MPSDataType::kInt32};
  return types[static_cast<std::size_t>(element)];
}

Handle<NSArray> make_shape(const Shape& shape) {
  std::vector<Id> numbers;
  for (const std::int64_t extent : shape) {
    numbers.push_back(apple::make_number(NSInteger{extent}).id());
  }
  return apple::make_array(numbers);
}

using Tensor = Handle<MPSGraphTensor>;

/// Sends the messages of a described graph's nodes.
class Translation {
 public:
  explicit Translation(const Graph& graph)
      : object_(send<Ref<MPSGraph>>(class_of<MPSGraph>(), "new"_sel)) {
    for (const Node& node : graph.nodes()) {
      const Tensor tensor = translate(node);
      if (!tensor) throw Error("MPSGraph gave no tensor for " + std::string(name(node.op)) + ".");
      tensors_.push_back(tensor);
    }
  }

  const Ref<MPSGraph>& object() const { return object_; }

  Tensor of(NodeId id) const { return tensors_.at(static_cast<std::size_t>(id)); }

 private:
  Tensor input(const Node& node, std::size_t n) const { return of(node.inputs.at(n)); }

  template <class Name>
  Tensor unary(const Node& n, Name message) const {
    return send<Tensor>(object_, message, input(n, 0), kNil);
  }

  template <class Name>
  Tensor binary(const Node& n, Name message) const {
    return send<Tensor>(object_, message, input(n, 0), input(n, 1), kNil);
  }

  template <class Name>
  Tensor reduce(const Node& n, Name message) const {
    return send<Tensor>(object_, message, input(n, 0), NSInteger{n.axis}, kNil);
  }

  Tensor translate(const Node& n) const {
    switch (n.op) {
      case Op::kInput:
        return send<Tensor>(object_, "placeholderWithShape:dataType:name:"_sel, make_shape(n.shape),
                            data_type(n.type), apple::make_string(std::string(name(n.role))));
      case Op::kConstant:
        return send<Tensor>(object_, "constantWithScalar:shape:dataType:"_sel, n.scalar,
                            make_shape(n.shape), data_type(n.type));
      case Op::kCoordinate:
        return send<Tensor>(object_, "coordinateAlongAxis:withShape:name:"_sel, NSInteger{n.axis},
                            make_shape(n.shape), kNil);
      case Op::kSelect:
        return send<Tensor>(
            object_, "selectWithPredicateTensor:truePredicateTensor:falsePredicateTensor:name:"_sel,
            input(n, 0), input(n, 1), input(n, 2), kNil);
      case Op::kAttention:
        return attention(n);
      default:
        return n.inputs.size() == 1 || n.op == Op::kConcat ? shaping(n) : arithmetic(n);
    }
  }

  Tensor shaping(const Node& n) const {
    const auto last = static_cast<NSUInteger>(n.shape.size() - 1);
    switch (n.op) {
      case Op::kCast:
        return send<Tensor>(object_, "castTensor:toType:name:"_sel, input(n, 0), data_type(n.type),
                            kNil);
      case Op::kReshape:
        return send<Tensor>(object_, "reshapeTensor:withShape:name:"_sel, input(n, 0),
                            make_shape(n.shape), kNil);
      case Op::kBroadcast:
        return send<Tensor>(object_, "broadcastTensor:toShape:name:"_sel, input(n, 0),
                            make_shape(n.shape), kNil);
      case Op::kTranspose:
        return send<Tensor>(object_, "transposeTensor:dimension:withDimension:name:"_sel,
                            input(n, 0), NSUInteger{last - 1}, last, kNil);
      case Op::kSlice:
        return send<Tensor>(object_, "sliceTensor:dimension:start:length:name:"_sel, input(n, 0),
                            static_cast<NSUInteger>(n.axis), NSInteger{n.start},
                            NSInteger{n.shape[static_cast<std::size_t>(n.axis)]}, kNil);
      case Op::kConcat:
        return concat(n);
      default:
        return elementwise(n);
    }
  }

  Tensor elementwise(const Node& n) const {
    switch (n.op) {
      case Op::kExp:
        return unary(n, "exponentWithTensor:name:"_sel);
      case Op::kLog:
        return unary(n, "logarithmWithTensor:name:"_sel);
      case Op::kTanh:
        return unary(n, "tanhWithTensor:name:"_sel);
      case Op::kReduceMax:
        return reduce(n, "reductionMaximumPropagateNaNWithTensor:axis:name:"_sel);
      default:
        return reduce(n, "reductionSumWithTensor:axis:name:"_sel);
    }
  }

  Tensor arithmetic(const Node& n) const {
    switch (n.op) {
      case Op::kAdd:
        return binary(n, "additionWithPrimaryTensor:secondaryTensor:name:"_sel);
      case Op::kSubtract:
        return binary(n, "subtractionWithPrimaryTensor:secondaryTensor:name:"_sel);
      case Op::kMultiply:
        return binary(n, "multiplicationWithPrimaryTensor:secondaryTensor:name:"_sel);
      case Op::kDivide:
        return binary(n, "divisionWithPrimaryTensor:secondaryTensor:name:"_sel);
      case Op::kMaximum:
        return binary(n, "maximumWithNaNPropagationWithPrimaryTensor:secondaryTensor:name:"_sel);
      case Op::kNotEqual:
        return binary(n, "notEqualWithPrimaryTensor:secondaryTensor:name:"_sel);
      case Op::kLessOrEqual:
        return binary(n, "lessThanOrEqualToWithPrimaryTensor:secondaryTensor:name:"_sel);
      case Op::kAnd:
        return binary(n, "logicalANDWithPrimaryTensor:secondaryTensor:name:"_sel);
      default:
        return binary(n, "matrixMultiplicationWithPrimaryTensor:secondaryTensor:name:"_sel);
    }
  }

  Tensor concat(const Node& n) const {
    std::vector<Id> parts;
    for (const NodeId part : n.inputs) parts.push_back(of(part).id());
    return send<Tensor>(object_, "concatTensors:dimension:name:"_sel, apple::make_array(parts),
                        NSInteger{n.axis}, kNil);
  }

  Tensor attention(const Node& n) const {
    const auto scale = static_cast<float>(n.scalar);
    const Tensor q = input(n, 0), k = input(n, 1), v = input(n, 2);
    if (n.causal || n.has_sinks) {
      return send<Tensor>(
          object_,
          "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:descriptor:name:"_sel, q,
          k, v, descriptor(n, scale), kNil);
    }
    if (n.has_mask) {
      return send<Tensor>(object_,
                          "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:"
                          "maskTensor:scale:name:"_sel,
                          q, k, v, input(n, 3), scale, kNil);
    }
    return send<Tensor>(
        object_, "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:scale:name:"_sel,
        q, k, v, scale, kNil);
  }

  Handle<MPSGraphSDPADescriptor> descriptor(const Node& n, float scale) const {
    const auto made = send<Handle<MPSGraphSDPADescriptor>>(class_of<MPSGraphSDPADescriptor>(),
                                                           "descriptorWithScale:"_sel, scale);
    if (n.causal) send<void>(made, "setIsCausal:"_sel, true);
    if (n.has_mask) send<void>(made, "setMaskTensor:"_sel, input(n, 3));
    if (n.has_sinks) send<void>(made, "setSinksTensor:"_sel, input(n, n.has_mask ? 4 : 3));
    return made;
  }

  const Ref<MPSGraph> object_;
  std::vector<Tensor> tensors_;
};

Ref<MPSGraphShapedType> shaped_type(const Node& node) {
  return send<Ref<MPSGraphShapedType>>(
      send<Ref<MPSGraphShapedType>>(class_of<MPSGraphShapedType>(), "alloc"_sel),
      "initWithShape:dataType:"_sel, make_shape(node.shape), data_type(node.type));
}

/// The ports in the order in which Apple's arrays have their tensors.
std::vector<Port> ordered(Handle<NSArray> tensors, const std::vector<GraphOutput>& candidates,
                          const Translation& translation, const Graph& graph) {
  std::vector<Port> ports;
  const auto count = send<NSUInteger>(tensors, "count"_sel);
  for (NSUInteger n = 0; n < count; ++n) {
    const auto tensor = send<Handle<MPSGraphTensor>>(tensors, "objectAtIndex:"_sel, n);
    for (const auto& [role, node] : candidates) {
      if (translation.of(node).id() != tensor.id()) continue;
      ports.push_back({role, graph.at(node).type, graph.shape(node)});
      break;
    }
  }
  if (ports.size() != candidates.size()) {
    throw Error("MPSGraph's executable has other tensors than its graph.");
  }
  return ports;
}

Ref<MPSGraphTensorData> whole_buffer(const Array& array, const Port& port) {
  return send<Ref<MPSGraphTensorData>>(
      send<Ref<MPSGraphTensorData>>(class_of<MPSGraphTensorData>(), "alloc"_sel),
      "initWithMTLBuffer:shape:dataType:"_sel, array.buffer, make_shape(port.shape),
      data_type(port.type));
}

/// MPSGraphTensorData itself knows no offset; MPSNDArray does, and pads its rows unless told not
/// to.
Ref<MPSGraphTensorData> part_of_buffer(const Array& array, const Port& port) {
  const auto descriptor = send<Handle<MPSNDArrayDescriptor>>(
      class_of<MPSNDArrayDescriptor>(), "descriptorWithDataType:shape:"_sel, data_type(port.type),
      make_shape(port.shape));
  send<void>(descriptor, "setPreferPackedRows:"_sel, true);
  const auto part = send<Ref<MPSNDArray>>(
      send<Ref<MPSNDArray>>(class_of<MPSNDArray>(), "alloc"_sel),
      "initWithBuffer:offset:descriptor:"_sel, array.buffer, array.offset, descriptor);
  if (!part) throw Error("MPSGraph took no array within a buffer.");
  return send<Ref<MPSGraphTensorData>>(
      send<Ref<MPSGraphTensorData>>(class_of<MPSGraphTensorData>(), "alloc"_sel),
      "initWithMPSNDArray:"_sel, part);
}

Ref<MPSGraphTensorData> tensor_data(const Arrays& arrays, const Port& port) {
  const Array& array = arrays.at(port.role);
  auto data = array.offset == 0 ? whole_buffer(array, port) : part_of_buffer(array, port);
  if (!data) throw Error("MPSGraph took no memory for " + std::string(name(port.role)) + ".");
  return data;
}

std::vector<Ref<MPSGraphTensorData>> tensor_data(const Arrays& arrays,
                                                 const std::vector<Port>& ports) {
  std::vector<Ref<MPSGraphTensorData>> list;
  for (const Port& port : ports) list.push_back(tensor_data(arrays, port));
  return list;
}

template <class T>
Handle<NSArray> make_array_of(const std::vector<Ref<T>>& objects) {
  std::vector<Id> ids;
  for (const Ref<T>& object : objects) ids.push_back(object.id());
  return apple::make_array(ids);
}

}  // namespace

GraphSystem open_graph_system() {
  const apple::AutoreleasePool pool;
  apple::Runtime& runtime = apple::runtime();
  if (!runtime.framework(kShaders) || !runtime.framework(kShadersGraph)) {
    throw Error("The MetalPerformanceShadersGraph framework could not be loaded on this system.");
  }
  const auto graph = send<Ref<MPSGraph>>(class_of<MPSGraph>(), "new"_sel);
  if (!responds(
          graph,
          "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:maskTensor:scale:name:"_sel)) {
    throw Error(
        "macOS 15 or newer is needed, as MPSGraph has no scaledDotProductAttention before.");
  }
  return {
      .has_descriptor =
          runtime.find_class("MPSGraphSDPADescriptor") &&
          responds(
              graph,
              "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:descriptor:name:"_sel)};
}

Executable compile(const Graph& graph, Handle<MTLDevice> device) {
  const Translation translation(graph);
  std::vector<Id> tensors, targets;
  std::vector<Ref<MPSGraphShapedType>> types;
  std::vector<GraphOutput> inputs;
  for (const NodeId input : graph.inputs()) {
    inputs.push_back({graph.at(input).role, input});
    tensors.push_back(translation.of(input).id());
    types.push_back(shaped_type(graph.at(input)));
  }
  std::vector<Id> type_ids;
  for (const auto& type : types) type_ids.push_back(type.id());
  for (const GraphOutput& output : graph.outputs()) {
    targets.push_back(translation.of(output.node).id());
  }
  const auto on =
      send<Handle<MPSGraphDevice>>(class_of<MPSGraphDevice>(), "deviceWithMTLDevice:"_sel, device);
  auto made = send<Ref<MPSGraphExecutable>>(
      translation.object(),
      "compileWithDevice:feeds:targetTensors:targetOperations:compilationDescriptor:"_sel, on,
      apple::make_dictionary(tensors, type_ids), apple::make_array(targets), kNil, kNil);
  if (!made) throw Error("MPSGraph could not compile the graph.");
  auto feeds = ordered(send<Handle<NSArray>>(made, "feedTensors"_sel), inputs, translation, graph);
  auto results = ordered(send<Handle<NSArray>>(made, "targetTensors"_sel), graph.outputs(),
                         translation, graph);
  return {std::move(made), std::move(feeds), std::move(results)};
}

void encode(const Executable& executable, const Arrays& arrays, Handle<MPSCommandBuffer> commands) {
  const auto feeds = tensor_data(arrays, executable.feeds);
  const auto targets = tensor_data(arrays, executable.targets);
  const auto results = send<Handle<NSArray>>(
      executable.object, "encodeToCommandBuffer:inputsArray:resultsArray:executionDescriptor:"_sel,
      commands, make_array_of(feeds), make_array_of(targets), kNil);
  if (!results) throw Error("MPSGraph could not encode the graph.");
}

std::shared_ptr<const Executable> Executables::find(const GraphSpec& spec) {
  return cache_.find_or_make(key_of(spec), [&] {
    const Graph graph = make_graph(spec);
    return Costed<Executable>{std::make_shared<Executable>(compile(graph, device_)),
                              graph.nodes().size() * kNodeBytes};
  });
}

}  // namespace sdpa::metal
