// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>

#include "sdpa/dropout.h"
#include "sdpa/params.h"
#include "tests/apple_fake/executor.h"

namespace sdpa::apple_fake {

/// The kernel that writes dropout as a tensor, in C++. The kernel itself is tested in the
/// simulator.
class KeepKernel : public KernelExecutor {
 public:
  CompiledSource compile(const std::string& source) override {
    const std::string mark = "SDPA_INSTANTIATE(\"";
    const std::size_t name = source.rfind(mark) + mark.size();
    return {{{.name = source.substr(name, source.find('"', name) - name)}}, ""};
  }

  void run(const Launch& launch) override {
    ++launches;
    const auto& p = *reinterpret_cast<const AttentionParams*>(launch.buffers[1].data);
    auto* kept = reinterpret_cast<unsigned char*>(launch.buffers[0].data);
    for (long head = 0; head < p.batch * p.q_heads; ++head) {
      for (long query = 0; query < p.q_len; ++query) {
        for (long key = 0; key < p.kv_len; ++key) *kept++ = is_kept(p, head, query, key);
      }
    }
  }

  std::atomic<int> launches{0};

 private:
  static unsigned char is_kept(const AttentionParams& p, long head, long query, long key) {
    const auto narrow = [](long x) { return static_cast<unsigned int>(x); };
    return dropout_word(narrow(key), narrow(query), narrow(head + p.first_head),
                        narrow(p.dropout_offset), narrow(p.seed_low),
                        narrow(p.seed_high)) >= narrow(p.dropout_threshold);
  }
};

}  // namespace sdpa::apple_fake
