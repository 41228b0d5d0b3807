// SPDX-License-Identifier: MIT
//
// The AMX forward pass on processors that have no AMX: a model does the products of tiles, all else
// is the code that ships. It needs AVX-512 with bfloat16.
#include <gtest/gtest.h>

#include <iostream>

#include "sdpa/cpu/amx_forward.h"
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/cpu/simd_avx512.h"
#include "tests/conformance.h"

namespace sdpa::cpu {
namespace {

struct Lanes32 : Avx512 {
  static constexpr int kColumns = 2;
};

/// What the instructions do, element by element.
struct ModelTiles {
  struct Registers {
    ~Registers() {}  // not trivial: a variable of this type is used
  };

  static float element(const TilePair& pair, int tile, int row, int column, int step) {
    return to_float(pair.data[step * pair.step + tile * pair.second + row * pair.row + column]);
  }

  template <Sum kSum>
  static void multiply_block(float* to, std::int64_t stride, TilePair a, TilePair b, int steps) {
    for (int i = 0; i < kAmxBlock; ++i)
      for (int j = 0; j < kAmxBlock; ++j) {
        float sum = kSum == Sum::kStart ? 0 : to[i * stride + j];
        for (int step = 0; step < steps; ++step)
          for (int k = 0; k < kTileDepth; ++k)
            sum += element(a, i / kTileRows, i % kTileRows, k, step) *
                   element(b, j / kTileRows, k / 2, j % kTileRows * 2 + k % 2, step);
        to[i * stride + j] = sum;
      }
  }
};

bool runs_here() {
  for (const InstructionSet& set : instruction_sets())
    if (set.name == "avx512_bf16") return set.runs_here;
  return false;
}

TEST(AmxForward, EveryCaseOfBFloat16) {
  if (!runs_here()) GTEST_SKIP() << "!!! NOT CHECKED: this processor has no AVX-512 with bfloat16";
  int runs = 0, declined = 0;
  for (const cases::Case& spec : cases::suite("conformance")) {
    if (spec.dtype != DType::kBFloat16) continue;
    if (spec.batch * spec.q_heads * spec.q_len * spec.kv_len * spec.qk_dim * spec.v_dim == 0)
      continue;
    SCOPED_TRACE(spec.name);
    cases::CaseData data(spec, 7);
    const cases::Expected oracle = cases::expected(data);
    const ForwardTensors tensors = data.forward_tensors();
    const bool has_run = AmxForward<Lanes32, ModelTiles>(data.problem, tensors).run();
    EXPECT_TRUE(has_whole_rows(tensors) || !has_run);
    ++(has_run ? runs : declined);
    if (!has_run) continue;
    EXPECT_EQ(cases::forward_failures(data, oracle), std::vector<std::string>());
  }
  std::cout << runs << " cases, " << declined << " declined\n";
  EXPECT_GT(runs, 5 * declined);
}

}  // namespace
}  // namespace sdpa::cpu
