// SPDX-License-Identifier: MIT
// MPSGraph: what is asked for is described (sdpa/metal/graph.h has Apple's rules), compiled to an
// executable of its own order, and evaluated in double when its command buffer runs.
#include "tests/apple_fake/graph.h"

#include <algorithm>

#include "tests/mpsgraph/evaluate.h"

namespace sdpa::apple_fake {
namespace {

using metal::Graph;
using metal::Op;

/// A tensor of a graph. The graph keeps its tensors; nobody else has to.
struct GraphTensor : Body {
  const Body* graph;
  NodeId node;

  GraphTensor(const Body* from, NodeId id) : graph(from), node(id) {}
};

struct ShapedType : Body {
  Shape shape;
  Element type = Element::kFloat32;

  Made init(In<Array> extents, DataType data_type) {
    shape = shape_of(*extents.get());
    type = element_of(data_type);
    return {self};
  }
};

struct AttentionDescriptor : Body {
  float scale = 1;
  bool causal = false;
  Hold mask, sinks;

  void set_mask(Maybe<GraphTensor> tensor) { mask = Hold(tensor.get() ? tensor->self : nullptr); }

  void set_causal(bool on) { causal = on; }

  void set_sinks(Maybe<GraphTensor> tensor) { sinks = Hold(tensor.get() ? tensor->self : nullptr); }
};

Made make_attention_descriptor(ClassInfo&, float scale) {
  auto descriptor = std::make_unique<AttentionDescriptor>();
  descriptor->scale = scale;
  return {current_runtime().create("MPSGraphSDPADescriptor", std::move(descriptor))};
}

/// Placeholders and targets are told apart by their number, which goes by as a role.
metal::Role numbered(std::size_t number) { return static_cast<metal::Role>(number); }

constexpr std::size_t kFirstTarget = 128;

struct Executable : Body {
  std::shared_ptr<const Graph> graph;
  Hold owner;  // of the tensors
  std::vector<Hold> feeds, targets;

  static Made listed(const std::vector<Hold>& tensors) {
    auto array = std::make_unique<Array>();
    array->objects = tensors;
    return {current_runtime().create("NSArray", std::move(array))};
  }

  Made feed_tensors() { return listed(feeds); }

  Made target_tensors() { return listed(targets); }

  Made encode(In<ShadersCommandBuffer> commands, In<Array> inputs, Maybe<Array> results,
              Maybe<Body> descriptor);
  void check(const std::vector<Hold>& tensors, const Array& data, const char* what) const;
};

NodeId node_of(const Hold& tensor) {
  return static_cast<GraphTensor*>(tensor.id()->body.get())->node;
}

const GraphData& data_of(const Hold& data) { return *body_of<GraphData>(data.id(), "element"); }

void Executable::check(const std::vector<Hold>& tensors, const Array& data,
                       const char* what) const {
  FakeRuntime& runtime = current_runtime();
  if (data.objects.size() != tensors.size()) {
    runtime.fail(current_message() + ": " + std::to_string(data.objects.size()) + " " + what +
                 " for " + std::to_string(tensors.size()));
  }
  for (std::size_t n = 0; n < tensors.size(); ++n) {
    const metal::Node& node = graph->at(node_of(tensors[n]));
    const GraphData& given = data_of(data.objects[n]);
    if (given.shape == node.shape && given.type == node.type) continue;
    runtime.fail(current_message() + ": " + what + " " + std::to_string(n) + " is " +
                 std::string(metal::name(given.type)) + " " + metal::to_string(given.shape) +
                 ", the graph has " + std::string(metal::name(node.type)) + " " +
                 metal::to_string(node.shape));
  }
}

/// What the GPU does: reads, evaluates, writes.
void run(const Graph& graph, const std::vector<Hold>& feeds, const std::vector<Hold>& inputs,
         const std::vector<Hold>& targets, const std::vector<Hold>& results) {
  values::Tensors known;
  for (std::size_t n = 0; n < feeds.size(); ++n) {
    const auto& data = *static_cast<GraphData*>(inputs[n].id()->body.get());
    known[graph.at(node_of(feeds[n])).role] = data.read();
  }
  Graph wanted = graph;
  for (std::size_t n = 0; n < targets.size(); ++n) {
    wanted.output(numbered(kFirstTarget + n), node_of(targets[n]));
  }
  const values::Tensors found = values::evaluate(wanted, known);
  for (std::size_t n = 0; n < targets.size(); ++n) {
    const auto& data = *static_cast<GraphData*>(results[n].id()->body.get());
    data.write(found.at(numbered(kFirstTarget + n)));
  }
}

/// Half of what is encoded goes off at once, as Apple may do: the command buffer underneath is
/// another one afterwards.
Made Executable::encode(In<ShadersCommandBuffer> commands, In<Array> inputs, Maybe<Array> results,
                        Maybe<Body>) {
  if (current_gpu().faults.no_encoding) return {};
  if (!results.get()) current_runtime().fail("results of the graph's own are not played here");
  check(feeds, *inputs.get(), "inputs");
  check(targets, *results.get(), "results");
  std::vector<Hold> held{Hold(self)};
  for (const Array* array : {inputs.get(), results.get()}) {
    for (const Hold& data : array->objects) {
      held.push_back(data);
      held.push_back(data_of(data).buffer);
    }
  }
  add_task(
      commands->root.id(),
      [graph = graph, from = feeds, in = inputs->objects, to = targets, out = results->objects] {
        run(*graph, from, in, to, out);
      },
      std::move(held));
  commands->go_on();
  return listed(results->objects);
}

struct FakeGraph : Body {
  Graph graph;
  std::vector<Hold> tensors;

  Made give(NodeId node) {
    const Made made = make<GraphTensor>("MPSGraphTensor", this, node);
    tensors.emplace_back(made);
    current_runtime().retain(made.object);
    return made;
  }

  NodeId id(const GraphTensor* tensor) const {
    if (tensor->graph != this) current_runtime().fail("a tensor of another graph");
    return tensor->node;
  }

  template <class Code>
  Made build(const Code& code) {
    return give(within_rules([&] { return code(); }));
  }

  Made placeholder(In<Array> extents, DataType type, Maybe<String>) {
    const std::size_t number = graph.inputs().size();
    return build(
        [&] { return graph.input(numbered(number), element_of(type), shape_of(*extents.get())); });
  }

  Made constant(double value, In<Array> extents, DataType type) {
    return build([&] { return graph.constant(value, element_of(type), shape_of(*extents.get())); });
  }

  Made coordinate(NSInteger axis, In<Array> extents, Maybe<String>) {
    return build([&] { return graph.coordinate(axis, shape_of(*extents.get())); });
  }

  Made cast(In<GraphTensor> x, DataType type, Maybe<String>) {
    return build([&] { return graph.cast(id(x.get()), element_of(type)); });
  }

  Made reshape(In<GraphTensor> x, In<Array> extents, Maybe<String>) {
    return build([&] { return graph.reshape(id(x.get()), shape_of(*extents.get())); });
  }

  Made broadcast(In<GraphTensor> x, In<Array> extents, Maybe<String>) {
    return build([&] { return graph.broadcast(id(x.get()), shape_of(*extents.get())); });
  }

  Made transpose(In<GraphTensor> x, NSUInteger a, NSUInteger b, Maybe<String>) {
    const std::size_t rank = graph.shape(id(x.get())).size();
    if (a + 2 != rank || b + 1 != rank) {
      current_runtime().fail(current_message() + ": only the last two dimensions are played here");
    }
    return build([&] { return graph.transpose(id(x.get())); });
  }

  Made slice(In<GraphTensor> x, NSUInteger axis, NSInteger start, NSInteger length, Maybe<String>) {
    return build(
        [&] { return graph.slice(id(x.get()), static_cast<std::int64_t>(axis), start, length); });
  }

  Made concat(In<Array> parts, NSInteger axis, Maybe<String>) {
    std::vector<NodeId> nodes;
    for (const Hold& part : parts->objects) {
      nodes.push_back(id(body_of<GraphTensor>(part.id(), "element")));
    }
    return build([&] { return graph.concat(nodes, axis); });
  }

  template <Op op>
  Made binary(In<GraphTensor> a, In<GraphTensor> b, Maybe<String>) {
    return build([&] { return graph.binary(op, id(a.get()), id(b.get())); });
  }

  template <Op op>
  Made unary(In<GraphTensor> x, Maybe<String>) {
    return build([&] { return graph.unary(op, id(x.get())); });
  }

  template <Op op>
  Made reduce(In<GraphTensor> x, NSInteger axis, Maybe<String>) {
    return build([&] { return graph.reduce(op, id(x.get()), axis); });
  }

  Made matmul(In<GraphTensor> a, In<GraphTensor> b, Maybe<String>) {
    return build([&] { return graph.matmul(id(a.get()), id(b.get())); });
  }

  Made select(In<GraphTensor> predicate, In<GraphTensor> yes, In<GraphTensor> no, Maybe<String>) {
    return build([&] { return graph.select(id(predicate.get()), id(yes.get()), id(no.get())); });
  }

  Made attend(const GraphTensor* q, const GraphTensor* k, const GraphTensor* v,
              const metal::AttentionOptions& options) {
    return build([&] { return graph.attention(id(q), id(k), id(v), options); });
  }

  Made attention(In<GraphTensor> q, In<GraphTensor> k, In<GraphTensor> v, float scale,
                 Maybe<String>) {
    return attend(q.get(), k.get(), v.get(), {.scale = scale});
  }

  Made masked_attention(In<GraphTensor> q, In<GraphTensor> k, In<GraphTensor> v,
                        Maybe<GraphTensor> mask, float scale, Maybe<String>) {
    metal::AttentionOptions options{.scale = scale};
    if (mask.get()) options.mask = id(mask.get());
    return attend(q.get(), k.get(), v.get(), options);
  }

  Made described_attention(In<GraphTensor> q, In<GraphTensor> k, In<GraphTensor> v,
                           In<AttentionDescriptor> d, Maybe<String>) {
    ++current_gpu().descriptors;
    metal::AttentionOptions options{.scale = d->scale, .causal = d->causal};
    if (d->mask.id()) options.mask = id(body_of<GraphTensor>(d->mask.id(), "mask"));
    if (d->sinks.id()) options.sinks = id(body_of<GraphTensor>(d->sinks.id(), "sinks"));
    return attend(q.get(), k.get(), v.get(), options);
  }

  void check_feed(const Hold& tensor, const Hold& type) const {
    const auto* shaped = body_of<ShapedType>(type.id(), "feed");
    const metal::Node& node = graph.at(id(body_of<GraphTensor>(tensor.id(), "feed")));
    if (node.op == Op::kInput && node.shape == shaped->shape && node.type == shaped->type) return;
    current_runtime().fail(current_message() +
                           ": a feed differs from its placeholder in shape or type");
  }

  /// The order of an executable's tensors is its own: here the last comes first.
  Made compile(Maybe<Body> device, In<Dictionary> feeds, In<Array> targets, Maybe<Array>,
               Maybe<Body>) {
    if (!device.get()) current_runtime().note("a graph is compiled for no device");
    FakeGpu& gpu = current_gpu();
    ++gpu.graphs;
    if (gpu.faults.graph_raises) throw NSException();
    if (gpu.faults.no_executable) return {};
    auto made = std::make_unique<Executable>();
    made->graph = std::make_shared<Graph>(graph);
    made->owner = Hold(self);
    for (const auto& [tensor, type] : feeds->entries) {
      check_feed(tensor, type);
      made->feeds.insert(made->feeds.begin(), tensor);
    }
    if (made->feeds.size() != graph.inputs().size()) {
      current_runtime().fail(current_message() + ": a placeholder has no feed");
    }
    for (const Hold& target : targets->objects) {
      id(body_of<GraphTensor>(target.id(), "target"));
      made->targets.insert(made->targets.begin(), target);
    }
    return {current_runtime().create("MPSGraphExecutable", std::move(made))};
  }
};

void define_operations(FakeRuntime& runtime) {
  define<"MPSGraph">(runtime)
      .on<"additionWithPrimaryTensor:secondaryTensor:name:", &FakeGraph::binary<Op::kAdd>>()
      .on<"subtractionWithPrimaryTensor:secondaryTensor:name:", &FakeGraph::binary<Op::kSubtract>>()
      .on<"multiplicationWithPrimaryTensor:secondaryTensor:name:",
          &FakeGraph::binary<Op::kMultiply>>()
      .on<"divisionWithPrimaryTensor:secondaryTensor:name:", &FakeGraph::binary<Op::kDivide>>()
      .on<"maximumWithNaNPropagationWithPrimaryTensor:secondaryTensor:name:",
          &FakeGraph::binary<Op::kMaximum>>()
      .on<"notEqualWithPrimaryTensor:secondaryTensor:name:", &FakeGraph::binary<Op::kNotEqual>>()
      .on<"lessThanOrEqualToWithPrimaryTensor:secondaryTensor:name:",
          &FakeGraph::binary<Op::kLessOrEqual>>()
      .on<"logicalANDWithPrimaryTensor:secondaryTensor:name:", &FakeGraph::binary<Op::kAnd>>()
      .on<"matrixMultiplicationWithPrimaryTensor:secondaryTensor:name:", &FakeGraph::matmul>()
      .on<"selectWithPredicateTensor:truePredicateTensor:falsePredicateTensor:name:",
          &FakeGraph::select>()
      .on<"exponentWithTensor:name:", &FakeGraph::unary<Op::kExp>>()
      .on<"logarithmWithTensor:name:", &FakeGraph::unary<Op::kLog>>()
      .on<"tanhWithTensor:name:", &FakeGraph::unary<Op::kTanh>>()
      .on<"reductionMaximumPropagateNaNWithTensor:axis:name:", &FakeGraph::reduce<Op::kReduceMax>>()
      .on<"reductionSumWithTensor:axis:name:", &FakeGraph::reduce<Op::kReduceSum>>();
}

void define_shapes(FakeRuntime& runtime) {
  define<"MPSGraph">(runtime)
      .on<"new", &make_new<FakeGraph>>()
      .on<"placeholderWithShape:dataType:name:", &FakeGraph::placeholder>()
      .on<"constantWithScalar:shape:dataType:", &FakeGraph::constant>()
      .on<"coordinateAlongAxis:withShape:name:", &FakeGraph::coordinate>()
      .on<"castTensor:toType:name:", &FakeGraph::cast>()
      .on<"reshapeTensor:withShape:name:", &FakeGraph::reshape>()
      .on<"broadcastTensor:toShape:name:", &FakeGraph::broadcast>()
      .on<"transposeTensor:dimension:withDimension:name:", &FakeGraph::transpose>()
      .on<"sliceTensor:dimension:start:length:name:", &FakeGraph::slice>()
      .on<"concatTensors:dimension:name:", &FakeGraph::concat>()
      .on<"compileWithDevice:feeds:targetTensors:targetOperations:compilationDescriptor:",
          &FakeGraph::compile>();
}

void define_attention(FakeRuntime& runtime) {
  define<"MPSGraph">(runtime)
      .on<"scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:scale:name:",
          &FakeGraph::attention>()
      .on<"scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:maskTensor:scale:name:",
          &FakeGraph::masked_attention>()
      .on<"scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:descriptor:name:",
          &FakeGraph::described_attention>();
  define<"MPSGraphSDPADescriptor">(runtime)
      .on<"descriptorWithScale:", &make_attention_descriptor>()
      .on<"setMaskTensor:", &AttentionDescriptor::set_mask>()
      .on<"setIsCausal:", &AttentionDescriptor::set_causal>()
      .on<"setSinksTensor:", &AttentionDescriptor::set_sinks>();
}

}  // namespace

void install_graph(FakeRuntime& runtime) {
  install_graph_data(runtime);
  define_operations(runtime);
  define_shapes(runtime);
  define_attention(runtime);
  define<"MPSGraphTensor">(runtime);
  define<"MPSGraphShapedType">(runtime)
      .on<"alloc", &make_new<ShapedType>>()
      .on<"initWithShape:dataType:", &ShapedType::init>();
  define<"MPSGraphExecutable">(runtime)
      .on<"feedTensors", &Executable::feed_tensors>()
      .on<"targetTensors", &Executable::target_tensors>()
      .on<"encodeToCommandBuffer:inputsArray:resultsArray:executionDescriptor:",
          &Executable::encode>();
}

}  // namespace sdpa::apple_fake
