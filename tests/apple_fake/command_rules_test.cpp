// SPDX-License-Identifier: MIT
// The rules of commands and dispatches: a right use first, then each rule is broken once.
#include "tests/apple_fake/session.h"

namespace sdpa::apple {
namespace {

TEST_F(Rules, AKernelRunsWithoutAComplaint) {
  FakeMac mac(kernels_);
  {
    Session s;
    for (int i = 0; i < 16; ++i) s.contents()[i] = static_cast<float>(i);
    s.use("twice");
    s.bind(s.data, 0, 0);
    s.dispatch();
    s.dispatch();
    s.end();
    s.commit();
    s.wait();
    EXPECT_EQ(send<Status>(s.commands, "status"_sel), Status::kCompleted);
    EXPECT_FALSE(send<Handle<NSError>>(s.commands, "error"_sel));
    for (int i = 0; i < 16; ++i) EXPECT_EQ(s.contents()[i], 4 * static_cast<float>(i));
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
  EXPECT_EQ(mac.gpu.dispatches, 2);
  EXPECT_EQ(mac.gpu.allocated_bytes, 0u);
}

TEST_F(Rules, CommandBuffersOfAQueueRunInOrder) {
  FakeMac mac(kernels_);
  {
    Session s;
    s.end();
    s.contents()[0] = 1;
    const auto pipeline = s.pipeline("twice");
    std::vector<Handle<MTLCommandBuffer>> all;
    for (int i = 0; i < 10; ++i) {
      s.commands = send<Handle<MTLCommandBuffer>>(s.queue, "commandBuffer"_sel);
      s.encoder = send<Handle<MTLComputeCommandEncoder>>(s.commands, "computeCommandEncoder"_sel);
      send<void>(s.encoder, "setComputePipelineState:"_sel, pipeline);
      s.bind(s.data, 0, 0);
      s.dispatch();
      s.end();
      s.commit();
      all.push_back(s.commands);
    }
    for (const auto& each : all) send<void>(each, "waitUntilCompleted"_sel);
    EXPECT_EQ(s.contents()[0], 1024);
  }
  EXPECT_EQ(mac.runtime.finish(), std::vector<std::string>());
}

// The order of commands.

TEST_F(Rules, MissingEndEncoding) {
  breaks("commit while an encoder is open: endEncoding was not sent", [] { Session().commit(); });
}

TEST_F(Rules, EndEncodingTwice) {
  breaks("endEncoding sent twice", [] {
    Session s;
    s.end();
    s.end();
  });
}

TEST_F(Rules, EncoderDroppedOpen) {
  breaks("an encoder was released before endEncoding", [] { Session s; });
}

TEST_F(Rules, TwoEncodersAtOnce) {
  breaks("a second encoder while one is open", [] {
    Session s;
    send<Handle<MTLComputeCommandEncoder>>(s.commands, "computeCommandEncoder"_sel);
  });
}

TEST_F(Rules, CommitTwice) {
  breaks("commit sent twice", [] {
    Session s;
    s.end();
    s.commit();
    s.commit();
  });
}

TEST_F(Rules, WorkNeverCommitted) {
  breaks("a command buffer with work was never committed", [] {
    Session s;
    s.use("twice");
    s.bind(s.data, 0, 0);
    s.dispatch();
    s.end();
  });
}

TEST_F(Rules, WaitBeforeCommit) {
  breaks("waitUntilCompleted before commit", [] {
    Session s;
    s.end();
    s.wait();
  });
}

TEST_F(Rules, ResultReadBeforeTheEnd) {
  breaks("contents of a buffer that the GPU is still using", [] {
    Session s;
    s.use("twice");
    s.bind(s.data, 0, 0);
    s.dispatch();
    s.end();
    s.commit();
    s.contents();
  });
}

TEST_F(Rules, EncodingAfterTheEnd) {
  breaks("dispatchThreadgroups:threadsPerThreadgroup:] after endEncoding", [] {
    Session s;
    s.end();
    s.dispatch();
  });
}

// Dispatches.

TEST_F(Rules, NoPipelineState) {
  breaks("without a pipeline state", [] { Session().dispatch(); });
}

TEST_F(Rules, MoreThreadsThanThePipelineAllows) {
  breaks("32 threads in a threadgroup, the pipeline allows 16", [] {
    Session s;
    s.use("narrow");
    s.dispatch();
  });
}

TEST_F(Rules, EmptyGrid) {
  breaks("no threads", [] {
    Session s;
    s.use("narrow");
    s.dispatch({0, 1, 1});
  });
}

TEST_F(Rules, TooMuchThreadgroupMemory) {
  breaks("32769 bytes of threadgroup memory", [] {
    Session s;
    s.use("wide");
    s.dispatch();
  });
}

TEST_F(Rules, UnsetBuffer) {
  breaks("twice: buffer 0 is not set", [] {
    Session s;
    s.use("twice");
    s.dispatch();
  });
}

TEST_F(Rules, BufferTooSmallForItsKernel) {
  breaks("twice: buffer 0 has 60 bytes, the kernel needs 64", [] {
    Session s;
    s.use("twice");
    s.bind(s.data, 4, 0);
    s.dispatch();
  });
}

TEST_F(Rules, OffsetPastTheEnd) {
  breaks("offset 64 is past the end of 64 bytes", [] {
    Session s;
    s.bind(s.data, 64, 0);
  });
}

TEST_F(Rules, IndexPastTheTable) {
  breaks("there is no index 31", [] {
    Session s;
    s.bind(s.data, 0, 31);
  });
}

TEST_F(Rules, TooManyInlineBytes) {
  breaks("4097 bytes, allowed are 1 to 4096", [] {
    Session s;
    const std::vector<char> bytes(4097);
    send<void>(s.encoder, "setBytes:length:atIndex:"_sel, static_cast<const void*>(bytes.data()),
               NSUInteger{bytes.size()}, NSUInteger{0});
  });
}

}  // namespace
}  // namespace sdpa::apple
