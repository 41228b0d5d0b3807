// SPDX-License-Identifier: MIT
// Calls a kernel with its parameters: from the argument table, or from the lane's position.
#pragma once
#include <tuple>
#include <utility>

#include "kernel.h"
#include "msl_vector.h"

namespace sim {

MSL_UNCHECKED inline Size built_in(const Lane& lane, Source source) {
  const auto in_grid = [](unsigned group, unsigned size, unsigned thread) {
    return group * size + thread;
  };
  switch (source) {
    case Source::kThreadgroupPosition:
      return lane.threadgroup;
    case Source::kThreadgroupsPerGrid:
      return lane.threadgroups;
    case Source::kThreadPosition:
      return lane.thread;
    case Source::kThreadsPerThreadgroup:
      return lane.group;
    case Source::kDispatchThreadsPerThreadgroup:
      return lane.dispatched_group;
    case Source::kThreadsPerGrid:
      return lane.threads;
    case Source::kThreadIndex:
      return {lane.index};
    case Source::kSimdgroupIndex:
      return {lane.simdgroup};
    case Source::kLaneIndex:
      return {lane.lane};
    case Source::kSimdgroupsPerThreadgroup:
      return {lane.simdgroups};
    case Source::kThreadsPerSimdgroup:
      return {kSimdWidth};
    case Source::kQuadLane:
      return {lane.index % 4};
    case Source::kQuadgroupIndex:
      return {lane.index / 4};
    default:
      break;
  }
  const Size &at = lane.threadgroup, &size = lane.dispatched_group, &thread_at = lane.thread;
  return {in_grid(at.x, size.x, thread_at.x), in_grid(at.y, size.y, thread_at.y),
          in_grid(at.z, size.z, thread_at.z)};
}

/// One parameter of type P.
template <class P>
struct Take {
  static constexpr ParameterType kType{sizeof(P), alignof(P), false};

  MSL_UNCHECKED static P from(const Lane& lane, Source source, void*) {
    const Size value = built_in(lane, source);
    if constexpr (std::is_same_v<P, metal::vec<uint, 3>> ||
                  std::is_same_v<P, metal::vec<ushort, 3>>)
      return P(value.x, value.y, value.z);
    else if constexpr (metal::is_vector<P>)
      return P(value.x, value.y);
    else
      return P(value.x);
  }
};

template <class T>
struct Take<T*> {
  static constexpr ParameterType kType{sizeof(T), alignof(T), false};

  MSL_UNCHECKED static T* from(const Lane&, Source, void* address) {
    return static_cast<T*>(address);
  }
};

template <class T>
struct Take<T&> {
  static constexpr ParameterType kType{sizeof(T), alignof(T), true};

  MSL_UNCHECKED static T& from(const Lane&, Source, void* address) {
    return *static_cast<T*>(address);
  }
};

template <auto kFunction>
struct Caller;

template <class... P, void (*kFunction)(P...)>
struct Caller<kFunction> {
  static std::vector<ParameterType> types() { return {Take<P>::kType...}; }

  MSL_UNCHECKED static void call(const Lane& lane, const Kernel& kernel, void* const* addresses) {
    pass(lane, kernel.parameters.data(), addresses, std::index_sequence_for<P...>());
  }

 private:
  template <size_t... I>
  MSL_UNCHECKED static void pass(const Lane& lane, const Parameter* parameters,
                                 void* const* addresses, std::index_sequence<I...>) {
    kFunction(Take<P>::from(lane, parameters[I].source, addresses[I])...);
  }
};

/// The table entry of one instantiation.
template <auto kFunction>
Kernel make_kernel(const char* name, std::vector<Parameter> parameters, int max_threads) {
  return {name, Caller<kFunction>::call, Caller<kFunction>::types(), std::move(parameters),
          max_threads};
}

}  // namespace sim
