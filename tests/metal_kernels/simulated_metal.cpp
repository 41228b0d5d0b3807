// SPDX-License-Identifier: MIT
#include "tests/metal_kernels/simulated_metal.h"

#include <cstring>
#include <memory>
#include <stdexcept>

#include "sdpa/metal/specialization.h"
#include "tests/metal_kernels/spec_values.h"

namespace sdpa::metal {
namespace {

constexpr std::int64_t kLargestSpan = std::int64_t{1}
                                      << 26;  ///< bytes; the simulator copies buffers

std::int64_t span_bytes(const TensorView& view) {
  std::int64_t last = 0;
  for (std::size_t dim = 0; dim < 4; ++dim) {
    if (view.shape[dim] == 0) return 0;
    last += (view.shape[dim] - 1) * view.strides[dim];
  }
  return (last + 1) * size_bytes(view.dtype);
}

void copy_elements(const TensorView& from, const TensorView& to) {
  const auto size = static_cast<std::size_t>(size_bytes(from.dtype));
  for (std::int64_t b = 0; b < from.shape[0]; ++b)
    for (std::int64_t h = 0; h < from.shape[1]; ++h)
      for (std::int64_t r = 0; r < from.shape[2]; ++r)
        for (std::int64_t c = 0; c < from.shape[3]; ++c)
          std::memcpy(to.at<char>(0, 0, 0) + (b * to.strides[0] + h * to.strides[1] +
                                              r * to.strides[2] + c * to.strides[3]) *
                                                 size_bytes(to.dtype),
                      from.at<char>(0, 0, 0) + (b * from.strides[0] + h * from.strides[1] +
                                                r * from.strides[2] + c * from.strides[3]) *
                                                   size_bytes(from.dtype),
                      size);
}

/// A dense copy of a view that the kernels or the simulator cannot take, written back at the end.
class Packed {
 public:
  explicit Packed(TensorView& view) : view_(view), original_(view) {
    bytes_.resize(static_cast<std::size_t>(view.element_count() * size_bytes(view.dtype)));
    view_ = dense(bytes_.data(), view.dtype,
                  {view.shape[0], view.shape[1], view.shape[2], view.shape[3]});
    copy_elements(original_, view_);
  }

  void write_back() { copy_elements(view_, original_); }

 private:
  TensorView& view_;
  TensorView original_;
  std::vector<char> bytes_;
};

/// A tensor of a call, the role it plays, and whether it is written.
struct Operand {
  Role role;
  TensorView* view;
  enum class Use { kRead, kWrite } use;
};

constexpr auto kRead = Operand::Use::kRead;
constexpr auto kWrite = Operand::Use::kWrite;

std::vector<Operand> operands(ForwardTensors& t) {
  return {{Role::kQuery, &t.query, kRead}, {Role::kKey, &t.key, kRead},
          {Role::kValue, &t.value, kRead}, {Role::kMask, &t.mask, kRead},
          {Role::kSinks, &t.sinks, kRead}, {Role::kOut, &t.out, kWrite},
          {Role::kLse, &t.lse, kWrite}};
}

std::vector<Operand> operands(BackwardTensors& t) {
  return {{Role::kQuery, &t.query, kRead},
          {Role::kKey, &t.key, kRead},
          {Role::kValue, &t.value, kRead},
          {Role::kMask, &t.mask, kRead},
          {Role::kSinks, &t.sinks, kRead},
          {Role::kOut, &t.out, kRead},
          {Role::kLse, &t.lse, kRead},
          {Role::kGradOut, &t.grad_out, kRead},
          {Role::kGradLse, &t.grad_lse, kRead},
          {Role::kGradQuery, &t.grad_query, kWrite},
          {Role::kGradKey, &t.grad_key, kWrite},
          {Role::kGradValue, &t.grad_value, kWrite},
          {Role::kGradMask, &t.grad_mask, kWrite},
          {Role::kGradSinks, &t.grad_sinks, kWrite}};
}

bool takes_any_columns(Role role) {
  return role == Role::kMask || role == Role::kGradMask || role == Role::kSinks ||
         role == Role::kGradSinks;
}

/// Runs one pass on tensors that are brought into a form the kernels take.
template <typename Tensors, typename Run>
void run_pass(Tensors t, const Run& run) {
  std::vector<std::unique_ptr<Packed>> packed;
  RoleMemories memory;
  for (auto& [role, view, use] : operands(t)) {
    if (!view->is_present()) continue;
    if ((needs_copy(*view) && !takes_any_columns(role)) || span_bytes(*view) > kLargestSpan) {
      auto copy = std::make_unique<Packed>(*view);
      if (use == kWrite)
        packed.push_back(std::move(copy));
      else
        packed.insert(packed.begin(), std::move(copy));
    }
    memory[role] = {view->data, static_cast<std::size_t>(span_bytes(*view))};
  }
  run(t, memory);
  for (auto& copy : packed) copy->write_back();
}

sim::Size size_of(const Extent& extent) {
  return {static_cast<unsigned>(extent.x), static_cast<unsigned>(extent.y),
          static_cast<unsigned>(extent.z)};
}

}  // namespace

std::string select_function(const std::string& host_name) {
  if (!sim::kernel_info(host_name).name.empty()) return host_name;
  const Specialization s = parse_host_name(host_name);
  spec_values = {s.qk, s.v, s.chunks, s.tile, s.groups, s.features, spec_values.mutant};
  const std::string dtype = s.dtype == DType::kFloat16    ? "half"
                            : s.dtype == DType::kBFloat16 ? "bfloat"
                                                          : "float";
  return "any_" + s.kernel + "_" + dtype;
}

std::vector<sim::Counters> run_plan(const Plan& plan, RoleMemories memory,
                                    const sim::Options& options) {
  struct ScratchMemory {
    std::vector<std::uint8_t> bytes, written;
  };

  std::map<Role, ScratchMemory> scratch;
  for (const auto& [role, bytes] : plan.scratch) {
    const auto size = static_cast<std::size_t>(bytes);
    scratch[role] = {std::vector<std::uint8_t>(size, 0xff), std::vector<std::uint8_t>(size)};
    memory[role] = {scratch[role].bytes.data(), size};
  }
  std::vector<sim::Counters> counters;
  for (const Dispatch& dispatch : plan.dispatches) {
    sim::Dispatch launch{.function = select_function(dispatch.kernel),
                         .grid = size_of(dispatch.grid),
                         .group = size_of(dispatch.group)};
    for (std::size_t index = 0; index < dispatch.buffers.size(); ++index) {
      const Role role = dispatch.buffers[index];
      sim::Binding binding{.kind = sim::Binding::Kind::kBytes, .index = static_cast<int>(index)};
      if (role == Role::kParams) {
        binding.data = const_cast<AttentionParams*>(&plan.params);
        binding.bytes = sizeof plan.params;
      } else if (role == Role::kScalars) {
        binding.data = const_cast<AttentionScalars*>(&plan.scalars);
        binding.bytes = sizeof plan.scalars;
      } else {
        binding.kind = sim::Binding::Kind::kBuffer;
        binding.data = memory.at(role).data;
        binding.bytes = memory.at(role).bytes;
        if (scratch.contains(role)) binding.written = scratch[role].written.data();
      }
      launch.bindings.push_back(binding);
    }
    const sim::Result result = sim::run(launch, options);
    if (!result.ok()) throw std::runtime_error(dispatch.kernel + ": " + result.faults[0]);
    counters.push_back(result.counters);
  }
  return counters;
}

Plan SimulatedMetal::forward_plan(const Problem& problem, const ForwardTensors& t) const {
  switch (forward_plan_) {
    case ForwardPlan::kTiles:
      return plan_tiles(problem, t, device_);
    case ForwardPlan::kDecode:
      return plan_decode(problem, t, device_);
    case ForwardPlan::kProto:
      return plan_proto(problem, t, device_);
    default:
      return plan_forward(problem, t, device_);
  }
}

std::vector<std::string> SimulatedMetal::unsupported(const Problem& problem, Pass pass) const {
  return refusals(problem, pass, device_);
}

std::string SimulatedMetal::explain(const Problem& problem, Pass) const {
  return metal::to_string(forward_plan(problem, dense_forward(problem)));
}

void SimulatedMetal::run(Plan plan, const RoleMemories& memory) const {
  if (probe_.change) probe_.change(plan);
  const std::vector<sim::Counters> counters = run_plan(plan, memory, options_);
  for (std::size_t n = 0; probe_.launched != nullptr && n < counters.size(); ++n)
    probe_.launched->push_back({plan, plan.dispatches[n], counters[n]});
}

void SimulatedMetal::forward(const Problem& problem, const ForwardTensors& tensors) const {
  run_pass(tensors, [&](const ForwardTensors& t, const RoleMemories& memory) {
    run(forward_plan(problem, t), memory);
  });
}

void SimulatedMetal::backward(const Problem& problem, const BackwardTensors& tensors) const {
  run_pass(tensors, [&](const BackwardTensors& t, const RoleMemories& memory) {
    run(plan_backward(problem, t, device_), memory);
  });
}

}  // namespace sdpa::metal
