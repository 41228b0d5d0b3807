// SPDX-License-Identifier: MIT
// Grouped-query causal attention, forward and backward, on plain vectors.
#include <cstdio>
#include <random>
#include <vector>

#include "sdpa/attention.h"

namespace {

constexpr std::int64_t kBatch = 1, kQueryHeads = 8, kKeyHeads = 2, kLength = 256, kDim = 64;

/// Owns the memory that a view of shape [kBatch, heads, kLength, dim] looks at.
struct Tensor {
  std::vector<float> values;
  sdpa::TensorView view;

  Tensor(std::int64_t heads, std::int64_t dim)
      : values(static_cast<std::size_t>(kBatch * heads * kLength * dim)),
        view(sdpa::dense(values.data(), sdpa::DType::kFloat32, {kBatch, heads, kLength, dim})) {}
};

Tensor random_tensor(std::int64_t heads, unsigned seed) {
  Tensor tensor(heads, kDim);
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (float& value : tensor.values) value = normal(generator);
  return tensor;
}

}  // namespace

int main() {
  const Tensor query = random_tensor(kQueryHeads, 1), key = random_tensor(kKeyHeads, 2);
  const Tensor value = random_tensor(kKeyHeads, 3), grad_out = random_tensor(kQueryHeads, 4);
  const Tensor out(kQueryHeads, kDim), lse(kQueryHeads, 1);
  const Tensor grad_query(kQueryHeads, kDim), grad_key(kKeyHeads, kDim),
      grad_value(kKeyHeads, kDim);
  const sdpa::Attributes attributes{.causal = sdpa::Causal::kUpperLeft};

  const sdpa::ForwardTensors tensors{
      .query = query.view, .key = key.view, .value = value.view, .out = out.view, .lse = lse.view};
  const sdpa::Choice choice = sdpa::forward(tensors, attributes);
  sdpa::backward({.query = query.view,
                  .key = key.view,
                  .value = value.view,
                  .out = out.view,
                  .lse = lse.view,
                  .grad_out = grad_out.view,
                  .grad_query = grad_query.view,
                  .grad_key = grad_key.view,
                  .grad_value = grad_value.view},
                 attributes);

  const sdpa::Problem problem = sdpa::make_problem(tensors, attributes);
  std::printf("%s ran on %s\n", to_string(problem).c_str(), choice.backend->name().data());
  std::printf("out[0] = %g, d query[0] = %g\n", out.values[0], grad_query.values[0]);
}
