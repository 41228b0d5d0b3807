// SPDX-License-Identifier: MIT
#include "sdpa/metal/specialization.h"

#include <array>
#include <optional>
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

/// Cuts a mark and the number behind it off the end of a name, such as "_c12".
std::optional<int> cut_number(std::string& name, std::string_view mark) {
  const std::size_t place = name.rfind(mark), first = place + mark.size();
  const bool is_number = place != name.npos && first < name.size() && name.size() - first < 10 &&
                         name.find_first_not_of("0123456789", first) == name.npos;
  if (!is_number) return std::nullopt;
  const int number = std::stoi(name.substr(first));
  name.resize(place);
  return number;
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
  std::string rest = name;
  Specialization s;
  const auto cut = [&](const char* mark, int& value) {
    const std::optional<int> number = cut_number(rest, mark);
    value = number.value_or(0);
    return number.has_value();
  };
  const bool has_numbers = cut("_f", s.features) && cut("_g", s.groups) && cut("_t", s.tile) &&
                           cut("_c", s.chunks) && cut("_v", s.v) && cut("_q", s.qk);
  const std::size_t end = rest.rfind('_');
  if (has_numbers && end != rest.npos && end > 0) {
    s.kernel = rest.substr(0, end);
    s.dtype = element_type(rest.substr(end + 1));
  }
  if (s.kernel.empty() || host_name(s) != name)
    throw std::invalid_argument("'" + name + "' is not the host name of a Metal kernel");
  return s;
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
