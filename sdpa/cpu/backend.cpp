// SPDX-License-Identifier: MIT
#include "sdpa/cpu/backend.h"

#include "sdpa/cpu/backward.h"
#include "sdpa/cpu/backward_pair.h"
#include "sdpa/cpu/backward_plan.h"
#include "sdpa/cpu/decode_plan.h"
#include "sdpa/cpu/instruction_set.h"
#include "sdpa/cpu/plan.h"
#include "sdpa/reference.h"
#include "sdpa/threads.h"

namespace sdpa::cpu {
namespace {

/// The problem and tensors of one head alone; dropout still counts heads over the whole call.
struct HeadSlice {
  Problem problem;
  ForwardTensors tensors;

  HeadSlice(const Problem& whole, const ForwardTensors& all, std::int64_t batch, std::int64_t head)
      : problem(whole), tensors(all) {
    problem.batch = problem.q_heads = problem.kv_heads = 1;
    problem.dropout.first_head += batch * whole.q_heads + head;
    for (TensorView* view : {&tensors.query, &tensors.mask, &tensors.out, &tensors.lse})
      narrow(*view, batch, head);
    narrow(tensors.sinks, 0, head);
    for (TensorView* view : {&tensors.key, &tensors.value})
      narrow(*view, batch, head / whole.group());
  }

 private:
  static void narrow(TensorView& view, std::int64_t batch, std::int64_t head) {
    if (!view.is_present()) return;
    view.data = static_cast<char*>(view.data) +
                (batch * view.strides[0] + head * view.strides[1]) * size_bytes(view.dtype);
    view.shape[0] = view.shape[1] = 1;
  }
};

/// float64: the definition itself, in parallel over heads and blocks of rows.
void forward_double(const Problem& problem, const ForwardTensors& tensors) {
  constexpr std::int64_t kRows = 16;
  const std::int64_t blocks = (problem.q_len + kRows - 1) / kRows;
  parallel_for(problem.batch * problem.q_heads * blocks, [&](std::int64_t task, int) {
    const std::int64_t head = task / blocks, first = task % blocks * kRows;
    const HeadSlice slice(problem, tensors, head / problem.q_heads, head % problem.q_heads);
    reference::forward(slice.problem, slice.tensors, {.first = first, .last = first + kRows});
  });
}

std::string explain_backward(const Problem& problem, std::string_view instruction_set) {
  if (is_pair(problem)) return "one query and one key a head: dot products, nothing is staged";
  return std::string(instruction_set) + ": " + to_string(plan_backward(problem));
}

class CpuBackend final : public Backend {
 public:
  std::string_view name() const override { return "cpu"; }

  Device device() const override { return Device::kCpu; }

  Availability availability() const override { return {}; }

  std::vector<std::string> unsupported(const Problem&, Pass) const override { return {}; }

  std::string explain(const Problem& problem, Pass pass) const override {
    const InstructionSet& set = instruction_set();
    const bool is_reference = problem.dtype == DType::kFloat64;  // as in the forward pass
    if (pass == Pass::kBackward && !is_reference) return explain_backward(problem, set.name);
    if (is_decode(problem, set.kernels.shape)) return to_string(plan_decode(problem), set.name);
    return to_string(plan_forward(problem, set.kernels.shape), set.name);
  }

  void forward(const Problem& problem, const ForwardTensors& tensors) const override {
    if (problem.dtype == DType::kFloat64) return forward_double(problem, tensors);
    instruction_set().kernels.forward(problem, tensors);
  }

  void backward(const Problem& problem, const BackwardTensors& tensors) const override {
    cpu::backward(problem, tensors, instruction_set().kernels);
  }
};

}  // namespace

const Backend& backend() {
  static const CpuBackend instance;
  return instance;
}

}  // namespace sdpa::cpu
