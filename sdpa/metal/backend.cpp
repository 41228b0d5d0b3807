// SPDX-License-Identifier: MIT
#include "sdpa/metal/backend.h"

#include <exception>
#include <mutex>
#include <optional>
#include <utility>

#include "sdpa/metal/launch.h"

namespace sdpa::metal {
namespace {

using Access = Staging::Access;

/// An exception of Objective-C unwinds through C++ and says nothing there.
constexpr const char* kException = "Apple's frameworks raised an exception of Objective-C.";

/// What is opened once for all calls.
struct Opened {
  Gpu gpu;
  Pipelines pipelines{gpu, source};
};

/// The GPU, opened when it is first asked for, or the sentence that says why there is none.
class LazyGpu {
 public:
  Opened* find() {
    std::call_once(once_, [this] { open(); });
    return opened_ ? &*opened_ : nullptr;
  }

  /// For calls that were preceded by a choice: there is a GPU.
  Opened& require() {
    Opened* found = find();
    return found ? *found : throw apple::Error(reason_);
  }

  const std::string& reason() const { return reason_; }

 private:
  void open() {
    try {
      opened_.emplace();
    } catch (const std::exception& error) {
      reason_ = error.what();
    } catch (...) {
      reason_ = kException;
    }
  }

  std::once_flag once_;
  std::optional<Opened> opened_;
  std::string reason_;
};

ForwardTensors stage(Staging& staging, const ForwardTensors& t) {
  return {.query = staging.stage(Role::kQuery, t.query, Access::kRead),
          .key = staging.stage(Role::kKey, t.key, Access::kRead),
          .value = staging.stage(Role::kValue, t.value, Access::kRead),
          .mask = staging.stage(Role::kMask, t.mask, Access::kRead),
          .sinks = staging.stage(Role::kSinks, t.sinks, Access::kRead),
          .out = staging.stage(Role::kOut, t.out, Access::kWrite),
          .lse = staging.stage(Role::kLse, t.lse, Access::kWrite)};
}

BackwardTensors stage(Staging& staging, const BackwardTensors& t) {
  return {.query = staging.stage(Role::kQuery, t.query, Access::kRead),
          .key = staging.stage(Role::kKey, t.key, Access::kRead),
          .value = staging.stage(Role::kValue, t.value, Access::kRead),
          .mask = staging.stage(Role::kMask, t.mask, Access::kRead),
          .sinks = staging.stage(Role::kSinks, t.sinks, Access::kRead),
          .out = staging.stage(Role::kOut, t.out, Access::kRead),
          .lse = staging.stage(Role::kLse, t.lse, Access::kRead),
          .grad_out = staging.stage(Role::kGradOut, t.grad_out, Access::kRead),
          .grad_lse = staging.stage(Role::kGradLse, t.grad_lse, Access::kRead),
          .grad_query = staging.stage(Role::kGradQuery, t.grad_query, Access::kWrite),
          .grad_key = staging.stage(Role::kGradKey, t.grad_key, Access::kWrite),
          .grad_value = staging.stage(Role::kGradValue, t.grad_value, Access::kWrite),
          .grad_mask = staging.stage(Role::kGradMask, t.grad_mask, Access::kUpdate),
          .grad_sinks = staging.stage(Role::kGradSinks, t.grad_sinks, Access::kUpdate)};
}

std::string joined(const std::vector<std::string>& sentences) {
  std::string text;
  for (const std::string& sentence : sentences) text += (text.empty() ? "" : " ") + sentence;
  return text;
}

template <class Body>
void guarded(const Body& body) {
  try {
    body();
  } catch (const std::exception&) {
    throw;
  } catch (...) {
    throw apple::Error(kException);
  }
}

class MetalBackend final : public Backend {
 public:
  explicit MetalBackend(KernelSet kernels) : kernels_(kernels) {}

  std::string_view name() const override { return metal::name(kernels_); }

  Device device() const override { return Device::kMetal; }

  Availability availability() const override {
    return gpu_.find() ? Availability{} : Availability{false, gpu_.reason()};
  }

  std::vector<std::string> unsupported(const Problem& problem, Pass pass) const override {
    return objections(kernels_, problem, pass, info());
  }

  std::string explain(const Problem& problem, Pass pass) const override {
    return to_string(describe_plan(kernels_, problem, pass, info()));
  }

  void forward(const Problem& problem, const ForwardTensors& tensors) const override {
    guarded([&] { run(problem, Pass::kForward, tensors); });
  }

  void backward(const Problem& problem, const BackwardTensors& tensors) const override {
    guarded([&] { run(problem, Pass::kBackward, tensors); });
  }

  DeviceInfo info() const {
    const Opened* opened = gpu_.find();
    return opened ? opened->gpu.info() : DeviceInfo{};
  }

 private:
  template <class Tensors>
  void run(const Problem& problem, Pass pass, const Tensors& tensors) const {
    const apple::AutoreleasePool pool;
    Opened& opened = gpu_.require();
    Staging staging(opened.gpu);
    const Tensors seen = stage(staging, tensors);
    const Plan plan = fitting_plan(opened, problem, pass, seen);
    for (const Scratch& scratch : plan.scratch) staging.allocate(scratch);
    launch(opened.gpu, opened.pipelines, plan, staging);
    staging.finish();
  }

  /// A plan whose kernels, once compiled, may have the threads that it asks for: a kernel that
  /// needs many registers may have fewer.
  template <class Tensors>
  Plan fitting_plan(Opened& opened, const Problem& problem, Pass pass,
                    const Tensors& tensors) const {
    DeviceInfo device = opened.gpu.info();
    for (;;) {
      Plan plan = make_plan(kernels_, problem, tensors, device);
      const auto threads = exceeded_threads(opened.pipelines, plan);
      if (!threads) return plan;
      device.max_threads = *threads;
      const auto reasons = refusals(problem, pass, device);
      if (!reasons.empty()) throw apple::Error(joined(reasons));
    }
  }

  const KernelSet kernels_;
  mutable LazyGpu gpu_;
};

const MetalBackend& flash_backend() {
  static const MetalBackend instance(KernelSet::kFlash);
  return instance;
}

}  // namespace

std::unique_ptr<const Backend> make_backend(KernelSet kernels) {
  return std::make_unique<MetalBackend>(kernels);
}

const Backend& backend() { return flash_backend(); }

const Backend& proto_backend() {
  static const MetalBackend instance(KernelSet::kProto);
  return instance;
}

std::optional<DeviceInfo> system_device() {
  if (!flash_backend().availability().available) return std::nullopt;
  return flash_backend().info();
}

}  // namespace sdpa::metal
