// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "sdpa/metal/attention_graph.h"
#include "sdpa/metal/lru_cache.h"
#include "sdpa/metal/objc.h"

/// Described graphs as Apple's: translated node by node, compiled, kept, and encoded. Every
/// function needs an autorelease pool around it and throws apple::Error where Apple's side gives
/// nothing.
namespace sdpa::metal {

/// What MPSGraph can do on the running system.
struct GraphSystem {
  bool has_descriptor = false;  ///< MPSGraphSDPADescriptor: macOS 27
};

/// Loads the frameworks. Throws apple::Error with the sentence that says why MPSGraph cannot serve:
/// it is not there, or has no attention.
GraphSystem open_graph_system();

/// Memory of a tensor: it lies densely from `offset` on, in bytes.
struct Array {
  apple::Ref<apple::MTLBuffer> buffer;
  apple::NSUInteger offset = 0;
};

using Arrays = std::map<Role, Array>;

/// An input or output of a graph.
struct Port {
  Role role;
  Element type;
  Shape shape;

  std::int64_t bytes() const { return element_count(shape) * size_bytes(type); }
};

/// A compiled graph. It may be encoded from several threads at once.
struct Executable {
  apple::Ref<apple::MPSGraphExecutable> object;
  std::vector<Port> feeds, targets;  ///< in the order of Apple's arrays
};

Executable compile(const Graph& graph, apple::Handle<apple::MTLDevice> device);

/// Encodes one run. Apple may commit what `commands` was made with and go on with another command
/// buffer: ask it for its rootCommandBuffer afterwards. What it reads and writes has to live until
/// the GPU is done.
void encode(const Executable& executable, const Arrays& arrays,
            apple::Handle<apple::MPSCommandBuffer> commands);

/// The graphs that this process compiled, by all that shapes them. Each is compiled once; the least
/// recently used are dropped, and live on while they are used.
class Executables {
 public:
  explicit Executables(apple::Ref<apple::MTLDevice> device, CacheLimits limits = {})
      : device_(std::move(device)), cache_(limits) {}

  std::shared_ptr<const Executable> find(const GraphSpec& spec);

  /// For when memory runs out.
  void clear() { cache_.clear(); }

  std::size_t size() const { return cache_.size(); }

 private:
  const apple::Ref<apple::MTLDevice> device_;
  LruCache<std::string, Executable> cache_;
};

}  // namespace sdpa::metal
