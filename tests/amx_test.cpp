// SPDX-License-Identifier: MIT
//
// The passes with AMX on processors that have none: a model does the products of tiles, all else is
// the code that ships. It needs AVX-512 with bfloat16.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <iostream>
#include <limits>

#include "sdpa/cpu/amx_backward.h"
#include "sdpa/cpu/amx_decode.h"
#include "sdpa/cpu/amx_forward.h"
#include "sdpa/cpu/backward.h"
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/cpu/simd_avx512.h"
#include "sdpa/threads.h"
#include "tests/conformance.h"

namespace sdpa::cpu {
namespace {

struct Lanes32 : Avx512 {
  static constexpr int kColumns = 2;
};

/// What the instructions do, element by element.
struct ModelTiles {
  struct Registers {
    explicit Registers(const TileConfiguration& = kTileConfiguration) {}

    ~Registers() {}  // not trivial: a variable of this type is used
  };

  static float element(const TilePair& pair, int tile, int row, int column, int step) {
    return to_float(pair.data[step * pair.step + tile * pair.second + row * pair.row + column]);
  }

  template <Sum kSum, int kColumns = 2, int kRows = 2>
  static void multiply_block(float* to, std::int64_t stride, TilePair a, TilePair b, int steps) {
    for (int i = 0; i < kRows * kTileRows; ++i)
      for (int j = 0; j < kColumns * kTileRows; ++j) {
        float sum = kSum == Sum::kStart ? 0 : to[i * stride + j];
        for (int step = 0; step < steps; ++step)
          for (int k = 0; k < kTileDepth; ++k)
            sum += element(a, i / kTileRows, i % kTileRows, k, step) *
                   element(b, j / kTileRows, k / 2, j % kTileRows * 2 + k % 2, step);
        to[i * stride + j] = sum;
      }
  }

  static void multiply_column(float* to, TilePair a, const BFloat16* column, int steps) {
    for (int i = 0; i < 2 * kTileRows; ++i) {
      to[i] = 0;
      for (int k = 0; k < steps * kTileDepth; ++k)
        to[i] += element(a, i / kTileRows, i % kTileRows, k % kTileDepth, k / kTileDepth) *
                 to_float(column[k]);
    }
  }
};

bool runs_here() {
  for (const InstructionSet& set : instruction_sets())
    if (set.name == "avx512") return set.runs_here;
  return false;
}

class Amx : public testing::Test {
  void SetUp() override {
    if (!runs_here()) GTEST_SKIP() << "!!! NOT CHECKED: this processor has no AVX-512";
  }
};

using AmxForwardTest = Amx;
using AmxBackwardTest = Amx;
using AmxDecodeTest = Amx;

/// The cases of bfloat16 that have results, with their data and what the oracle expects.
template <class Function>
void for_each_case(const Function& function) {
  for (const cases::Case& spec : cases::suite("conformance")) {
    if (spec.dtype != DType::kBFloat16) continue;
    if (spec.batch * spec.q_heads * spec.q_len * spec.kv_len * spec.qk_dim * spec.v_dim == 0)
      continue;
    SCOPED_TRACE(spec.name);
    cases::CaseData data(spec, 7);
    function(data, cases::expected(data));
  }
}

/// How often a kernel ran, and how often it left the work to another.
struct Count {
  std::atomic<int> runs, declined;

  void add(bool has_run) { ++(has_run ? runs : declined); }

  void expect_mostly_runs() const {
    std::cout << runs << " runs, " << declined << " declined\n";
    EXPECT_GT(runs, 5 * declined);
  }
};

TEST_F(AmxForwardTest, EveryCaseOfBFloat16) {
  Count count;
  for_each_case([&](cases::CaseData& data, const cases::Expected& oracle) {
    const ForwardTensors tensors = data.forward_tensors();
    const bool has_run = AmxForward<Lanes32, ModelTiles>(data.problem, tensors).run();
    EXPECT_TRUE(has_whole_rows(tensors) || !has_run);
    count.add(has_run);
    if (!has_run) return;
    EXPECT_EQ(cases::forward_failures(data, oracle), std::vector<std::string>());
  });
  count.expect_mostly_runs();
}

cases::Case shape(std::int64_t q_len, std::int64_t kv_len) {
  return {.dtype = DType::kBFloat16,
          .q_heads = 4,
          .kv_heads = 2,
          .q_len = q_len,
          .kv_len = kv_len,
          .qk_dim = 40,
          .v_dim = 24};
}

/// With no more threads than heads each task packs its own keys, with more of them all are packed
/// before.
TEST_F(AmxForwardTest, PacksWithFewThreadsAsWithMany) {
  const int threads = thread_count();
  for (const double value : {0.5, std::numeric_limits<double>::quiet_NaN()}) {
    cases::CaseData data(shape(40, 300), 7);
    cases::fill_rows(data.key.view(), 290, 291, value);
    std::vector<double> outputs[2];
    for (int n = 0; n < 2; ++n) {
      set_thread_count(n == 0 ? 1 : 8);
      EXPECT_EQ((AmxForward<Lanes32, ModelTiles>(data.problem, data.forward_tensors()).run()),
                value == value);
      outputs[n] = data.out.values();
    }
    if (value == value) {
      EXPECT_EQ(outputs[0], outputs[1]);
      EXPECT_EQ(cases::forward_failures(data, cases::expected(data)), std::vector<std::string>());
    }
  }
  set_thread_count(threads);
}

using ModelBackward = AmxBackward<Lanes32, ModelTiles>;

Count parts;

void run_model_part(const BackwardTask& task) {
  const bool has_run = ModelBackward(task).run();
  parts.add(has_run);
  if (!has_run) avx512_kernels().backward.run_part(task);
}

std::int64_t model_floats(const Problem& problem, std::int64_t unit_rows) {
  return std::max(ModelBackward::floats(problem, unit_rows),
                  avx512_kernels().backward.own_floats(problem, unit_rows));
}

/// Both passes, the second of them with the model.
void run_both(cases::CaseData& data) {
  Kernels kernels = avx512_kernels();
  kernels.backward.run_part = run_model_part;
  kernels.backward.own_floats = model_floats;
  kernels.forward(data.problem, data.forward_tensors());
  backward(data.problem, data.backward_tensors(), kernels);
}

/// Also of fewer keys than it is chosen for; with very few, what rounding takes off a weight shows.
TEST_F(AmxBackwardTest, EveryCaseOfBFloat16) {
  for_each_case([&](cases::CaseData& data, const cases::Expected& oracle) {
    if (data.problem.kv_len < kTileRows) return;
    run_both(data);
    EXPECT_EQ(cases::backward_failures(data, oracle), std::vector<std::string>());
  });
  parts.expect_mostly_runs();
}

/// Whether the model decodes it: no more rows than a tile has.
bool model_decodes(cases::CaseData& data) {
  const Problem& problem = data.problem;
  if (problem.q_len * problem.group() > kTileRows) return false;
  decode_with_tiles<ModelTiles>(problem, data.forward_tensors());
  return true;
}

/// One query a head is one row, more are those of two heads.
cases::Case few_rows(std::int64_t q_len, std::int64_t kv_len) {
  cases::Case spec = shape(q_len, kv_len);
  if (q_len == 1) spec.kv_heads = spec.q_heads;
  return spec;
}

TEST_F(AmxDecodeTest, EveryCaseOfBFloat16WithFewRows) {
  int runs = 0;
  for_each_case([&](cases::CaseData& data, const cases::Expected& oracle) {
    if (!model_decodes(data)) return;
    ++runs;
    EXPECT_EQ(cases::forward_failures(data, oracle), std::vector<std::string>());
  });
  EXPECT_GT(runs, 20);
}

/// What a mask, positions, dropout and a soft cap can do to scores, all at once.
void add_features(cases::Case& spec) {
  spec.mask = {.shape = cases::MaskShape::kPerHead, .dtype = DType::kFloat32};
  spec.causal = Causal::kLowerRight;
  spec.window = {.left = 170, .right = -1};
  spec.softcap = 3;
  spec.dropout = 0.2;
}

/// Ragged tiles, keys in several parts, a window that begins within a tile.
TEST_F(AmxDecodeTest, EveryCountOfRowsAndRaggedTiles) {
  for (const std::int64_t q_len : {1, 3, 5, 8})
    for (const std::int64_t kv_len : {32, 45, 300, 1100})
      for (const std::int64_t dim : {24, 64, 96})
        for (const bool has_features : {false, true}) {
          cases::Case spec = few_rows(q_len, kv_len);
          spec.qk_dim = dim;
          spec.v_dim = 88 - dim / 2;
          spec.sinks = has_features;
          if (has_features) add_features(spec);
          cases::CaseData data(spec, 7);
          SCOPED_TRACE(cases::describe(spec));
          ASSERT_TRUE(model_decodes(data));
          EXPECT_EQ(cases::forward_failures(data, cases::expected(data)),
                    std::vector<std::string>());
        }
}

/// Of each maximum before, what was summed up has to be taken down.
TEST_F(AmxDecodeTest, ScoresThatGrowFromBlockToBlock) {
  for (const std::int64_t q_len : {1, 8}) {
    cases::Case spec = few_rows(q_len, 512);
    spec.batch = 64;  // so that a head's keys are not split
    cases::CaseData data(spec, 7);
    for (int block = 0; block < 4; ++block)
      for (std::int64_t key = 0; key < kKeyBlock; ++key)
        cases::fill_rows(data.key.view(), block * kKeyBlock + key, block * kKeyBlock + key + 1,
                         key == 60 ? 1 + 4 * block : 0.01 * static_cast<double>(key));
    ASSERT_TRUE(model_decodes(data));
    EXPECT_EQ(cases::forward_failures(data, cases::expected(data)), std::vector<std::string>());
  }
}

/// Only rows that see such a key or value have it in their output. The window ends within a tile
/// of keys that are read where they lie; one query sees all from where it begins.
TEST_F(AmxDecodeTest, RowsThatAreNotFiniteReachOnlyThoseThatSeeThem) {
  for (const double value :
       {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()})
    for (cases::Tensor cases::CaseData::* poisoned :
         {&cases::CaseData::query, &cases::CaseData::key, &cases::CaseData::value})
      for (const std::int64_t q_len : {1, 8})
        for (const std::int64_t row : {0, 2, 115, 118, 317}) {
          cases::Case spec = few_rows(q_len, 320);
          spec.causal = Causal::kLowerRight;
          spec.window = {.left = 200, .right = -1};
          cases::CaseData data(spec, 7);
          cases::Tensor& tensor = data.*poisoned;
          if (row >= tensor.view().shape[2]) continue;
          cases::fill_rows(tensor.view(), row, row + 1, value);
          SCOPED_TRACE(row);
          ASSERT_TRUE(model_decodes(data));
          EXPECT_EQ(cases::forward_failures(data, cases::expected(data)),
                    std::vector<std::string>());
        }
}

TEST_F(AmxBackwardTest, MoreKeysThanABlockAndMoreRowsThanAUnit) {
  for (const bool has_features : {false, true})
    for (const bool has_nan : {false, true}) {
      cases::Case spec = shape(231, 300);
      spec.sinks = spec.grad_lse = true;
      if (has_features) add_features(spec);
      cases::CaseData data(spec, 7);
      if (has_nan)
        cases::fill_rows(data.sinks.view(), 0, 1, std::numeric_limits<double>::quiet_NaN());
      SCOPED_TRACE(cases::describe(spec));
      const cases::Expected oracle = cases::expected(data);
      run_both(data);
      EXPECT_EQ(cases::backward_failures(data, oracle), std::vector<std::string>());
    }
}

/// Many rows add up to one key, and with them any error of dP - delta.
TEST_F(AmxBackwardTest, RowsThatSeeOneKeyHaveNoGradientOfScores) {
  cases::Case spec = shape(297, 297);
  spec.window = {.left = 0, .right = 0};
  cases::CaseData data(spec, 7);
  run_both(data);
  for (const cases::Tensor* gradient : {&data.grad_query, &data.grad_key})
    for (const double value : gradient->values()) ASSERT_EQ(value, 0);
}

/// A zero weight must not meet them in a product.
TEST_F(Amx, RowsThatAreNotFiniteAreLeftToAnotherKernel) {
  for (const double value :
       {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()})
    for (cases::Tensor cases::CaseData::* poisoned :
         {&cases::CaseData::query, &cases::CaseData::key, &cases::CaseData::value,
          &cases::CaseData::grad_out}) {
      cases::Case spec = shape(300, 300);
      spec.causal = Causal::kUpperLeft;
      cases::CaseData data(spec, 7);
      cases::fill_rows((data.*poisoned).view(), 290, 291, value);
      const cases::Expected oracle = cases::expected(data);
      const ForwardTensors tensors = data.forward_tensors();
      const bool is_packed =
          poisoned == &cases::CaseData::key || poisoned == &cases::CaseData::value;
      if (is_packed) {
        EXPECT_FALSE((AmxForward<Lanes32, ModelTiles>(data.problem, tensors).run()));
      }
      run_both(data);
      EXPECT_EQ(cases::backward_failures(data, oracle), std::vector<std::string>());
    }
}

}  // namespace
}  // namespace sdpa::cpu
