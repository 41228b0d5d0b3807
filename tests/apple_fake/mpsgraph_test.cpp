// SPDX-License-Identifier: MIT
// Graphs translated, compiled, kept and encoded on a fake Mac.
#include "sdpa/metal/mpsgraph.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/apple_fake/keep_kernel.h"
#include "tests/apple_fake/session.h"

namespace sdpa::metal {
namespace {

using apple::Handle;
using apple::MPSCommandBuffer;
using apple::MTLBuffer;
using apple::MTLCommandBuffer;
using apple::Ref;
using apple::send;
using apple::Session;
using apple::operator""_sel;
using apple_fake::FakeMac;
using apple_fake::KeepKernel;

/// query - key * 2, by twelve of Apple's operations.
Graph small_graph(std::int64_t size) {
  Graph g;
  const NodeId a = g.input(Role::kQuery, Element::kFloat32, {size, 2});
  const NodeId b = g.input(Role::kKey, Element::kFloat16, {2, size});
  const NodeId two = g.constant(2, Element::kFloat32);
  const NodeId right = g.transpose(g.cast(b, Element::kFloat32));
  g.output(Role::kOut, g.binary(Op::kSubtract, a, g.binary(Op::kMultiply, right, two)));
  g.output(Role::kLse, g.reduce(Op::kReduceSum, a, 0));
  return g;
}

GraphSpec spec_of_length(std::int64_t length) {
  GraphSpec spec;
  spec.problem = {.batch = 1,
                  .q_heads = 1,
                  .kv_heads = 1,
                  .q_len = length,
                  .kv_len = length,
                  .qk_dim = 4,
                  .v_dim = 4};
  return spec;
}

/// Encodes one run on a session's queue and waits for it.
void run(Session& session, const Executable& executable, const Arrays& arrays) {
  const auto commands = send<Handle<MPSCommandBuffer>>(
      apple::class_of<MPSCommandBuffer>(), "commandBufferFromCommandQueue:"_sel, session.queue);
  const auto first = send<Handle<MTLCommandBuffer>>(commands, "rootCommandBuffer"_sel);
  encode(executable, arrays, commands);
  const auto last = send<Handle<MTLCommandBuffer>>(commands, "rootCommandBuffer"_sel);
  EXPECT_NE(first.id(), last.id());  // the fake goes on with another, as Apple may
  send<void>(last, "commit"_sel);
  for (const auto& each : {first, last}) send<void>(each, "waitUntilCompleted"_sel);
}

class MpsGraph : public testing::Test {
 protected:
  void TearDown() override { EXPECT_EQ(mac_.runtime.finish(), std::vector<std::string>()); }

  KeepKernel kernels_;
  FakeMac mac_{kernels_};
};

TEST_F(MpsGraph, ComputesWhatIsDescribed) {
  Session session;
  session.end();
  open_graph_system();
  const Executable executable = compile(small_graph(3), session.device);
  // An array that lies within a buffer: its offset is honoured.
  const Arrays arrays{{Role::kQuery, {session.buffer(64), 16}},
                      {Role::kKey, {session.buffer(64), 2}},
                      {Role::kOut, {session.buffer(64), 8}},
                      {Role::kLse, {session.buffer(64), 0}}};
  const auto memory = [&](Role role) {
    const Array& array = arrays.at(role);
    return static_cast<std::byte*>(send<void*>(array.buffer, "contents"_sel)) + array.offset;
  };
  auto* query = reinterpret_cast<float*>(memory(Role::kQuery));
  auto* key = reinterpret_cast<Float16*>(memory(Role::kKey));
  for (int n = 0; n < 6; ++n) {
    query[n] = static_cast<float>(10 * n);
    key[n] = to_float16(static_cast<float>(n));
  }
  run(session, executable, arrays);
  const auto* out = reinterpret_cast<const float*>(memory(Role::kOut));
  const auto* sum = reinterpret_cast<const float*>(memory(Role::kLse));
  const float expected[] = {0, 4, 18, 22, 36, 40};
  for (int n = 0; n < 6; ++n) EXPECT_EQ(out[n], expected[n]);
  EXPECT_EQ(sum[0], 60);
  EXPECT_EQ(sum[1], 90);
}

TEST_F(MpsGraph, KeepsWhatItCompiledWithinItsLimits) {
  const Session session;
  send<void>(session.encoder, "endEncoding"_sel);
  Executables executables(session.device, {.entries = 2});
  const auto first = executables.find(spec_of_length(8));
  EXPECT_EQ(executables.find(spec_of_length(8)), first);
  EXPECT_EQ(mac_.gpu.graphs, 1);
  executables.find(spec_of_length(9));
  executables.find(spec_of_length(10));
  EXPECT_EQ(executables.size(), 2u);
  executables.find(spec_of_length(8));
  EXPECT_EQ(mac_.gpu.graphs, 4);
  EXPECT_TRUE(first->object);  // dropped from the cache, and still ours
  Executables narrow(session.device, {.entries = 100, .bytes = 3 << 20});
  for (std::int64_t length = 8; length < 40; ++length) narrow.find(spec_of_length(length));
  EXPECT_LT(narrow.size(), 32u);
  EXPECT_GT(narrow.size(), 0u);
}

// Eight threads on one cache: every graph is compiled once, and used while others drop it.
TEST_F(MpsGraph, EightThreadsShareOneCache) {
  apple::AutoreleasePool pool;
  Session session;
  session.end();
  Executables executables(session.device, {.entries = 64});
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int n = 0; n < 24; ++n) {
        const apple::AutoreleasePool own;
        const auto executable = executables.find(spec_of_length(8 + (n * 5 + t) % 12));
        EXPECT_EQ(executable->feeds.size(), 3u);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(mac_.gpu.graphs, 12);
}

TEST_F(MpsGraph, EightThreadsRunWhatOthersDrop) {
  Session session;
  session.end();
  Executables executables(session.device, {.entries = 1});
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int n = 0; n < 6; ++n) {
        const apple::AutoreleasePool own;
        Session mine;
        mine.end();
        const auto executable = executables.find(spec_of_length(8 + (n + t) % 3));
        Arrays arrays;
        for (const auto* ports : {&executable->feeds, &executable->targets}) {
          for (const Port& port : *ports) {
            arrays[port.role] = {mine.buffer(static_cast<apple::NSUInteger>(port.bytes()))};
          }
        }
        run(mine, *executable, arrays);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace sdpa::metal
