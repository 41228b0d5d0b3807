// SPDX-License-Identifier: MIT
// Each rule of the fake MPSGraph, broken once.
#include "sdpa/metal/mpsgraph.h"
#include "tests/apple_fake/session.h"

namespace sdpa::apple {
namespace {

using Tensor = Handle<MPSGraphTensor>;
using Commands = Handle<MPSCommandBuffer>;

enum class Type : std::uint32_t { kFloat = 0x10000020, kHalf = 0x10000010, kWrong = 7 };

Handle<NSArray> shape(std::initializer_list<NSInteger> extents) {
  std::vector<Id> numbers;
  for (const NSInteger extent : extents) numbers.push_back(make_number(extent).id());
  return make_array(numbers);
}

/// A graph of one sum, with all that it needs to run.
struct GraphSession : Session {
  Ref<MPSGraph> graph = send<Ref<MPSGraph>>(class_of<MPSGraph>(), "new"_sel);
  Tensor a = input(shape({2, 4}));
  Tensor b = input(shape({2, 4}));

  GraphSession() { end(); }

  Tensor input(Handle<NSArray> extents, Type type = Type::kFloat) {
    return send<Tensor>(graph, "placeholderWithShape:dataType:name:"_sel, extents, type, kNil);
  }

  Tensor add(Tensor x, Tensor y) {
    return send<Tensor>(graph, "additionWithPrimaryTensor:secondaryTensor:name:"_sel, x, y, kNil);
  }

  Ref<MPSGraphShapedType> type(Handle<NSArray> extents) {
    return send<Ref<MPSGraphShapedType>>(
        send<Ref<MPSGraphShapedType>>(class_of<MPSGraphShapedType>(), "alloc"_sel),
        "initWithShape:dataType:"_sel, extents, Type::kFloat);
  }

  Ref<MPSGraphExecutable> compile(std::initializer_list<Tensor> feeds, Handle<NSArray> extents) {
    const auto common = type(extents);
    std::vector<Id> keys, types;
    for (const Tensor& feed : feeds) keys.push_back(feed.id()), types.push_back(common.id());
    const Id target = add(a, b).id();
    return send<Ref<MPSGraphExecutable>>(
        graph, "compileWithDevice:feeds:targetTensors:targetOperations:compilationDescriptor:"_sel,
        send<Handle<MPSGraphDevice>>(class_of<MPSGraphDevice>(), "deviceWithMTLDevice:"_sel,
                                     device),
        make_dictionary(keys, types), make_array({&target, 1}), kNil, kNil);
  }

  Ref<MPSGraphTensorData> memory(Handle<NSArray> extents, Type type = Type::kFloat) {
    return send<Ref<MPSGraphTensorData>>(
        send<Ref<MPSGraphTensorData>>(class_of<MPSGraphTensorData>(), "alloc"_sel),
        "initWithMTLBuffer:shape:dataType:"_sel, buffer(64), extents, type);
  }

  Commands graph_commands() {
    return send<Commands>(class_of<MPSCommandBuffer>(), "commandBufferFromCommandQueue:"_sel,
                          queue);
  }

  void encode(const Ref<MPSGraphExecutable>& executable, Commands to, Handle<NSArray> inputs,
              Handle<NSArray> results) {
    send<Handle<NSArray>>(executable,
                          "encodeToCommandBuffer:inputsArray:resultsArray:executionDescriptor:"_sel,
                          to, inputs, results, kNil);
  }
};

Handle<NSArray> list(std::initializer_list<Id> ids) {
  return make_array({ids.begin(), ids.size()});
}

using GraphRules = Rules;

TEST_F(GraphRules, OfOperations) {
  breaks("float32 and float16 do not mix", [] {
    GraphSession s;
    s.add(s.a, s.input(shape({2, 4}), Type::kHalf));
  });
  breaks("do not broadcast", [] {
    GraphSession s;
    s.add(s.a, s.input(shape({3, 4})));
  });
  breaks("an extent of zero", [] {
    GraphSession s;
    s.input(shape({0, 4}));
  });
  breaks("MPSDataType 7", [] {
    GraphSession s;
    s.input(shape({2}), Type::kWrong);
  });
  breaks("a tensor of another graph", [] {
    GraphSession s;
    s.add(s.a, GraphSession().a);
  });
  breaks("is the wrong one", [] {
    GraphSession s;
    s.add(s.a, Tensor(s.graph.id()));
  });
  breaks("nil as an argument", [] {
    GraphSession s;
    s.add(s.a, Tensor());
  });
}

TEST_F(GraphRules, OfCompiling) {
  breaks("a placeholder has no feed", [] {
    GraphSession s;
    s.compile({s.a}, shape({2, 4}));
  });
  breaks("a feed differs from its placeholder", [] {
    GraphSession s;
    s.compile({s.a, s.b}, shape({4, 2}));
  });
}

TEST_F(GraphRules, OfMemory) {
  breaks("the buffer is too small", [] {
    GraphSession s;
    s.memory(shape({17}));
  });
  breaks("rows are padded where preferPackedRows is not set", [] {
    GraphSession s;
    const auto descriptor = send<Handle<MPSNDArrayDescriptor>>(class_of<MPSNDArrayDescriptor>(),
                                                               "descriptorWithDataType:shape:"_sel,
                                                               Type::kFloat, shape({4}));
    send<Ref<MPSNDArray>>(send<Ref<MPSNDArray>>(class_of<MPSNDArray>(), "alloc"_sel),
                          "initWithBuffer:offset:descriptor:"_sel, s.data, NSUInteger{16},
                          descriptor);
  });
  breaks("offset 2 splits an element", [] {
    GraphSession s;
    const auto descriptor = send<Handle<MPSNDArrayDescriptor>>(class_of<MPSNDArrayDescriptor>(),
                                                               "descriptorWithDataType:shape:"_sel,
                                                               Type::kFloat, shape({4}));
    send<void>(descriptor, "setPreferPackedRows:"_sel, true);
    send<Ref<MPSNDArray>>(send<Ref<MPSNDArray>>(class_of<MPSNDArray>(), "alloc"_sel),
                          "initWithBuffer:offset:descriptor:"_sel, s.data, NSUInteger{2},
                          descriptor);
  });
}

TEST_F(GraphRules, OfRuns) {
  breaks("1 inputs for 2", [] {
    GraphSession s;
    const auto executable = s.compile({s.a, s.b}, shape({2, 4}));
    const auto x = s.memory(shape({2, 4}));
    s.encode(executable, s.graph_commands(), list({x.id()}), list({x.id()}));
  });
  breaks("inputs 1 is float16 [2, 4], the graph has float32 [2, 4]", [] {
    GraphSession s;
    const auto executable = s.compile({s.a, s.b}, shape({2, 4}));
    const auto x = s.memory(shape({2, 4})), y = s.memory(shape({2, 4}), Type::kHalf);
    s.encode(executable, s.graph_commands(), list({x.id(), y.id()}), list({x.id()}));
  });
  // The command buffer that one began with is gone once a graph was encoded.
  breaks("commit sent twice to a command buffer", [] {
    GraphSession s;
    const auto executable = s.compile({s.a, s.b}, shape({2, 4}));
    const auto x = s.memory(shape({2, 4})), y = s.memory(shape({2, 4}));
    const Commands commands = s.graph_commands();
    const auto first = send<Handle<MTLCommandBuffer>>(commands, "rootCommandBuffer"_sel);
    s.encode(executable, commands, list({x.id(), x.id()}), list({y.id()}));
    send<void>(first, "commit"_sel);
    send<void>(first, "waitUntilCompleted"_sel);
  });
  breaks("contents of a buffer that the GPU is still using", [] {
    GraphSession s;
    const auto executable = s.compile({s.a, s.b}, shape({2, 4}));
    const auto x = s.memory(shape({2, 4}));
    const auto out = send<Ref<MPSGraphTensorData>>(
        send<Ref<MPSGraphTensorData>>(class_of<MPSGraphTensorData>(), "alloc"_sel),
        "initWithMTLBuffer:shape:dataType:"_sel, s.data, shape({2, 4}), Type::kFloat);
    const Commands commands = s.graph_commands();
    const auto first = send<Ref<MTLCommandBuffer>>(commands, "rootCommandBuffer"_sel);
    s.encode(executable, commands, list({x.id(), x.id()}), list({out.id()}));
    s.contents();
  });
}

}  // namespace
}  // namespace sdpa::apple
