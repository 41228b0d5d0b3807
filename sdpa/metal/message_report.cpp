// SPDX-License-Identifier: MIT
#include "sdpa/metal/message_report.h"

#include <exception>
#include <iterator>

#include "sdpa/metal/foundation.h"
#include "sdpa/metal/messages.h"

namespace sdpa::apple {
namespace {

constexpr int kOldestMacos = 10, kNewestMacos = 99;

/// A class is known only when its framework is loaded; one that is not there shows as differences.
constexpr const char* kFrameworks[] = {
    "/System/Library/Frameworks/Metal.framework/Metal",
    "/System/Library/Frameworks/MetalPerformanceShaders.framework/MetalPerformanceShaders",
    ("/System/Library/Frameworks/MetalPerformanceShadersGraph.framework/"
     "MetalPerformanceShadersGraph")};

int running_macos() {
  int version = kOldestMacos;
  while (version < kNewestMacos && macos_at_least(version + 1)) ++version;
  return version;
}

std::string sentence(const Difference& difference) {
  const std::string declared =
      title(*difference.message) + " is declared as " + std::string(difference.message->encoding);
  if (difference.system_encoding.empty()) return declared + ", but the system has no such message.";
  return declared + ", but the system has " + difference.system_encoding + ".";
}

}  // namespace

MessageReport report_messages() {
  MessageReport report;
  try {
    Runtime& system = runtime();
    const AutoreleasePool pool;
    for (const char* framework : kFrameworks) system.framework(framework);
    report.macos = running_macos();
    report.declared = std::size(kMessages);
    for (const Difference& each : compare_messages(system, report.macos))
      report.differences.push_back(sentence(each));
  } catch (const std::exception& error) {
    report.reason = error.what();
  }
  return report;
}

}  // namespace sdpa::apple
