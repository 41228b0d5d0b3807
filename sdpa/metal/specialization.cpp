// SPDX-License-Identifier: MIT
#include "sdpa/metal/specialization.h"

#include <array>
#include <regex>
#include <stdexcept>

namespace sdpa::metal {
namespace {

constexpr int kSide = 8;         ///< rows and columns of a fragment
constexpr int kPadElements = 4;  ///< between staged rows: they start in different banks

const char* element_name(DType dtype) {
  return dtype == DType::kFloat16 ? "half" : dtype == DType::kBFloat16 ? "bfloat" : "float";
}

DType element_type(const std::string& name) {
  return name == "half" ? DType::kFloat16 : name == "bfloat" ? DType::kBFloat16 : DType::kFloat32;
}

struct FeatureName {
  Feature feature;
  const char* name;
};

constexpr std::array kFeatureNames{
    FeatureName{kBand, "band"},
    FeatureName{kSoftcap, "softcap"},
    FeatureName{kSinks, "sinks"},
    FeatureName{kDropout, "dropout"},
    FeatureName{kLse, "lse"},
    FeatureName{kClasses, "classified mask"},
    FeatureName{kRaggedDim, "ragged"},
    FeatureName{kStaged, "staged"},
    FeatureName{kGradLse, "lse gradient"},
    FeatureName{kGradKey, "dK"},
    FeatureName{kGradValue, "dV"},
};

constexpr std::array kMaskNames{"no mask", "bool mask", "float32 mask", "float16 mask",
                                "bfloat16 mask"};

}  // namespace

std::string host_name(const Specialization& s) {
  return s.kernel + "_" + element_name(s.dtype) + "_q" + std::to_string(s.qk) + "_v" +
         std::to_string(s.v) + "_c" + std::to_string(s.chunks) + "_t" + std::to_string(s.tile) +
         "_g" + std::to_string(s.groups) + "_f" + std::to_string(s.features);
}

Specialization parse_host_name(const std::string& name) {
  static const std::regex form(
      "([a-z_]+)_(float|half|bfloat)_q(\\d+)_v(\\d+)_c(\\d+)_t(\\d+)_g(\\d+)_f(\\d+)");
  std::smatch found;
  if (!std::regex_match(name, found, form))
    throw std::invalid_argument("'" + name + "' is not the host name of a Metal kernel");
  const auto number = [&](std::size_t n) { return std::stoi(found[n]); };
  return {.kernel = found[1],
          .dtype = element_type(found[2]),
          .qk = number(3),
          .v = number(4),
          .chunks = number(5),
          .tile = number(6),
          .groups = number(7),
          .features = number(8)};
}

std::string instantiation(const Specialization& s) {
  std::string arguments = element_name(s.dtype);
  for (int value : {s.qk, s.v, s.chunks, s.tile, s.groups, s.features})
    arguments += ", " + std::to_string(value);
  return "SDPA_INSTANTIATE(\"" + host_name(s) + "\", sdpa::" + s.kernel + ", sdpa::Spec<" +
         arguments + ">)";
}

std::string describe_features(int features) {
  std::string text = kMaskNames.at(static_cast<std::size_t>(features & kMaskKindBits));
  for (const auto& [feature, name] : kFeatureNames)
    if ((features & feature) != 0) text += std::string(", ") + name;
  return text;
}

std::int64_t threadgroup_bytes(const Specialization& s) {
  const bool has_tiles =
      s.kernel == "forward" || s.kernel == "grad_query" || s.kernel == "grad_key_value";
  if (!has_tiles || !s.has(kStaged)) return 0;
  const std::int64_t row = (s.qk + s.v) * kSide + 2 * kPadElements;
  return s.tile * kSide * row * size_bytes(s.dtype);
}

}  // namespace sdpa::metal
