// SPDX-License-Identifier: MIT
//
// The Metal kernels on an NVIDIA GPU, against the oracle and, where that would take hours, against
// the CPU back end in float32.
//
//   cuda_test conformance [EVERY [DTYPE]]   named cases, each EVERY-th, staged, direct and split
//   cuda_test large                         to 16384 queries and keys, many heads, decoding
//   cuda_test mutant N                      with mistake N (the build with mutants): noticed?
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <vector>

#include "sdpa/element.h"
#include "sdpa/metal/specialization.h"
#include "sdpa/registry.h"
#include "tests/conformance.h"
#include "tests/metal_cuda/cuda_kernels.h"
#include "tests/metal_kernels/simulated_metal.h"

namespace sdpa::metal {
namespace {

int mutant = 0;

const char* msl_name(DType dtype) {
  return dtype == DType::kFloat16 ? "half" : dtype == DType::kBFloat16 ? "bfloat" : "float";
}

/// Plans as for an Apple GPU, computes on this one.
class CudaMetal : public SimulatedMetal {
 public:
  using SimulatedMetal::SimulatedMetal;

  mutable float milliseconds = 0;  ///< of the launches since it was reset

 protected:
  void run(Plan plan, const RoleMemories& memory) const override {
    std::map<Role, std::unique_ptr<CudaBuffer>> buffers;
    for (const auto& [role, host] : memory) {
      buffers[role] = std::make_unique<CudaBuffer>(host.bytes);
      buffers[role]->write(host.data);
    }
    for (const Scratch& scratch : plan.scratch)
      buffers[scratch.role] = std::make_unique<CudaBuffer>(static_cast<std::size_t>(scratch.bytes));
    for (const Dispatch& dispatch : plan.dispatches) launch(plan, dispatch, buffers);
    for (const auto& [role, host] : memory) buffers[role]->read(host.data);
  }

 private:
  void launch(const Plan& plan, const Dispatch& dispatch,
              const std::map<Role, std::unique_ptr<CudaBuffer>>& buffers) const {
    const Specialization s = parse_host_name(dispatch.kernel);
    CudaLaunch launch{
        .function = s.kernel,
        .dtype = msl_name(s.dtype),
        .spec = {s.qk, s.v, s.chunks, s.tile, s.groups, s.features, mutant},
        .grid = {static_cast<unsigned>(dispatch.grid.x), static_cast<unsigned>(dispatch.grid.y),
                 static_cast<unsigned>(dispatch.grid.z)},
        .threads = static_cast<unsigned>(dispatch.group.x),
        .arguments = {}};
    launch.arguments.params = plan.params;
    launch.arguments.scalars = plan.scalars;
    for (std::size_t n = 0; n < dispatch.buffers.size(); ++n)
      if (const auto found = buffers.find(dispatch.buffers[n]); found != buffers.end())
        launch.arguments.buffers[n] = found->second->data();
    milliseconds += launch_on_gpu(launch);
  }
};

struct Setting {
  const char* name;
  DeviceInfo device;
  ForwardPlan forward_plan;
};

const Setting kSettings[] = {
    {"staged", {.name = "m1", .family = 7, .cores = 1}, ForwardPlan::kTiles},
    {"direct", {.cores = 1}, ForwardPlan::kTiles},
    {"split", {.cores = 40}, ForwardPlan::kDecode},
};

/// The failures of one case in all settings, in words.
std::vector<std::string> failures(const cases::Case& spec) {
  cases::CaseData data(spec, 7);
  const cases::Expected expected = cases::expected(data);
  std::vector<std::string> list;
  for (const Setting& setting : kSettings) {
    const CudaMetal backend(setting.device, {}, setting.forward_plan);
    for (const std::string& sentence : cases::check(backend, data, expected).failures)
      list.push_back(std::string(setting.name) + ", " + spec.name + ": " + sentence);
  }
  return list;
}

bool is_for_gpu(const cases::Case& spec) {
  const bool is_huge =
      spec.layout == cases::Layout::kHugeRows || spec.layout == cases::Layout::kHugeHeads;
  return !cases::has_empty_extent(spec) && !is_huge && spec.dtype != DType::kFloat64 &&
         (spec.mask.shape == cases::MaskShape::kNone || spec.mask.dtype != DType::kFloat64);
}

int run_conformance(int every, const std::string& dtype) {
  int runs = 0, wrong = 0, n = 0;
  for (const cases::Case& spec : cases::suite("conformance")) {
    if (!is_for_gpu(spec) || n++ % every != 0) continue;
    if (!dtype.empty() && dtype != msl_name(spec.dtype)) continue;
    for (const std::string& sentence : failures(spec)) {
      ++wrong;
      std::cout << "WRONG " << sentence << "\n";
    }
    runs += static_cast<int>(std::size(kSettings));
  }
  std::cout << "conformance: " << runs << " runs, both passes, " << wrong << " wrong\n";
  return wrong != 0;
}

const Backend& cpu() {
  for (const Backend* backend : backends())
    if (backend->name() == "cpu") return *backend;
  std::abort();
}

/// The largest difference to the CPU back end in float32 on the same values, beyond the tolerance.
int compare(const char* what, const cases::Tensor& got, const cases::Tensor& want,
            cases::Tolerance allowed) {
  const std::vector<double> a = got.values(), b = want.values();
  double largest = 0;
  int wrong = 0;
  for (std::size_t n = 0; n < a.size(); ++n) {
    largest = std::max(largest, std::abs(a[n] - b[n]));
    wrong += !cases::is_close(a[n], b[n], allowed);
  }
  std::cout << " " << what << " " << largest << (wrong != 0 ? " WRONG" : "");
  return wrong;
}

/// The same values in float32.
cases::CaseData widened(const cases::CaseData& data) {
  cases::Case spec = data.spec;
  spec.dtype = DType::kFloat32;
  cases::CaseData wide(spec, 1);
  for (auto member : {&cases::CaseData::query, &cases::CaseData::key, &cases::CaseData::value,
                      &cases::CaseData::grad_out})
    (wide.*member).assign((data.*member).values());
  wide.problem.dropout = data.problem.dropout;
  return wide;
}

int run_large_case(const cases::Case& spec, bool has_backward) {
  cases::CaseData data(spec, 5);
  cases::CaseData wide = widened(data);
  const Setting& setting = spec.q_len < 16 ? kSettings[2] : kSettings[1];
  const CudaMetal backend(setting.device, {}, setting.forward_plan);
  backend.forward(data.problem, data.forward_tensors());
  cpu().forward(wide.problem, wide.forward_tensors());
  std::cout << cases::describe(spec) << ": forward " << backend.milliseconds << " ms,";
  const cases::Tolerance close = cases::tolerance(data.problem, Pass::kForward);
  int wrong = compare("out", data.out, wide.out, close) + compare("lse", data.lse, wide.lse, close);
  if (has_backward) {
    backend.milliseconds = 0;
    backend.backward(data.problem, data.backward_tensors());
    cpu().backward(wide.problem, wide.backward_tensors());
    const cases::Tolerance near = cases::tolerance(data.problem, Pass::kBackward);
    std::cout << " backward " << backend.milliseconds << " ms,";
    wrong += compare("dq", data.grad_query, wide.grad_query, near) +
             compare("dk", data.grad_key, wide.grad_key, near) +
             compare("dv", data.grad_value, wide.grad_value, near);
  }
  std::cout << (wrong == 0 ? " right" : " WRONG") << std::endl;
  return wrong;
}

int run_large() {
  int wrong = 0;
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (Causal causal : {Causal::kNone, Causal::kUpperLeft}) {
      const auto square = [&](std::int64_t length, std::int64_t heads, std::int64_t kv_heads,
                              std::int64_t dim) -> cases::Case {
        return {.dtype = dtype,
                .batch = 1,
                .q_heads = heads,
                .kv_heads = kv_heads,
                .q_len = length,
                .kv_len = length,
                .qk_dim = dim,
                .v_dim = dim,
                .causal = causal};
      };
      wrong += run_large_case(square(16384, 1, 1, 64), true);
      wrong += run_large_case(square(4096, 8, 2, 128), true);
      wrong += run_large_case(square(1000, 64, 8, 64), true);
      cases::Case decode = square(16384, 32, 8, 128);
      decode.q_len = 1;
      if (causal != Causal::kNone) decode.causal = Causal::kLowerRight;
      wrong += run_large_case(decode, false);
    }
  return wrong != 0;
}

struct Mutant {
  std::string name, file, witness;
};

#ifdef SDPA_MUTANTS
const Mutant kMutants[] = {
#include "mutant_names.inc"
};
#else
const Mutant kMutants[] = {{"none", "", ""}};
#endif

/// 0 if something notices the mistake.
int run_mutant(int number) {
  mutant = number;
  const Mutant& made = kMutants[number - 1];
  try {
    for (bool is_witness : {true, false})
      for (const cases::Case& spec : cases::suite("conformance")) {
        if (!is_for_gpu(spec) || spec.dtype != DType::kFloat32) continue;
        if ((spec.name.find(made.witness) != std::string::npos) != is_witness) continue;
        const std::vector<std::string> found = failures(spec);
        if (found.empty()) continue;
        std::cout << made.name << ": " << found[0] << "\n";
        return 0;
      }
  } catch (const std::exception& error) {
    std::cout << made.name << ": " << error.what() << "\n";
    return 0;
  }
  std::cout << made.name << ": NOT NOTICED\n";
  return 1;
}

}  // namespace
}  // namespace sdpa::metal

int main(int count, char** words) {
  using namespace sdpa::metal;
  const std::string mode = count > 1 ? words[1] : "conformance";
  if (mode == "name") return std::cout << gpu_name() << "\n", gpu_name().empty();
  if (mode == "large") return run_large();
  if (mode == "mutant") return run_mutant(std::atoi(words[2]));
  return run_conformance(count > 2 ? std::atoi(words[2]) : 1, count > 3 ? words[3] : "");
}
