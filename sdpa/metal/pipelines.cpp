// SPDX-License-Identifier: MIT
#include "sdpa/metal/pipelines.h"

#include "sdpa/metal/foundation.h"

namespace sdpa::metal {

using apple::class_of;
using apple::Error;
using apple::Handle;
using apple::make_string;
using apple::MTLCompileOptions;
using apple::MTLComputePipelineState;
using apple::MTLFunction;
using apple::MTLLibrary;
using apple::NSError;
using apple::NSInteger;
using apple::NSUInteger;
using apple::Ref;
using apple::send;
using apple::operator""_sel;

namespace {

enum class LanguageVersion : NSUInteger { k3_1 = (3 << 16) + 1 };
enum class MathMode : NSInteger { kSafe = 0 };

/// Left to itself the compiler may choose a language without bfloat, and drop infinities and NaN.
Ref<MTLCompileOptions> options() {
  const auto made = send<Ref<MTLCompileOptions>>(class_of<MTLCompileOptions>(), "new"_sel);
  send<void>(made, "setLanguageVersion:"_sel, LanguageVersion::k3_1);
  if (responds(made, "setMathMode:"_sel)) {
    send<void>(made, "setMathMode:"_sel, MathMode::kSafe);
  } else {
    send<void>(made, "setFastMathEnabled:"_sel, false);
  }
  return made;
}

[[noreturn]] void throw_failed(const Dispatch& dispatch, const std::string& reason) {
  throw Error("The Metal kernel " + dispatch.kernel + " could not be compiled: " + reason);
}

}  // namespace

std::shared_ptr<const Pipeline> Pipelines::find(const Dispatch& dispatch) {
  return cache_.find_or_make(dispatch.kernel, [&] {
    return Costed<Pipeline>{std::make_shared<Pipeline>(compile(dispatch))};
  });
}

Ref<MTLLibrary> Pipelines::library(const Dispatch& dispatch) const {
  Handle<NSError> error;
  auto made = send<Ref<MTLLibrary>>(gpu_.device(), "newLibraryWithSource:options:error:"_sel,
                                    make_string(source_(dispatch)), options(), error.slot());
  if (!made) throw_failed(dispatch, reason_of(error));
  return made;
}

Pipeline Pipelines::compile(const Dispatch& dispatch) const {
  const auto function = send<Ref<MTLFunction>>(library(dispatch), "newFunctionWithName:"_sel,
                                               make_string(dispatch.kernel));
  if (!function) throw_failed(dispatch, "its library has no function of that name");
  Handle<NSError> error;
  auto state = send<Ref<MTLComputePipelineState>>(
      gpu_.device(), "newComputePipelineStateWithFunction:error:"_sel, function, error.slot());
  if (!state) throw_failed(dispatch, reason_of(error));
  const auto threads = send<NSUInteger>(state, "maxTotalThreadsPerThreadgroup"_sel);
  return {std::move(state), static_cast<std::int64_t>(threads)};
}

}  // namespace sdpa::metal
