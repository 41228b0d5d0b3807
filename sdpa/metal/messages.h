// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "sdpa/metal/runtime.h"

/// Every message that this library sends to Apple's objects, with its types, declared once.
///
/// `send` refuses at compile time what is not in this table. Tests hold the fake runtime and
/// Apple's published headers against it, and compare_messages() the system it runs on.
namespace sdpa::apple {

/// A text that can be an argument of a template.
template <std::size_t size>
struct Literal {
  char text[size];

  constexpr Literal(const char (&from)[size]) { std::copy_n(from, size, text); }

  constexpr std::string_view view() const { return {text, size - 1}; }
};

/// Stands for a class or protocol of Apple's in the types of handles.
template <Literal class_name>
struct Tag {
  static constexpr std::string_view kName = class_name.view();
};

using NSObject = Tag<"NSObject">;
using NSString = Tag<"NSString">;
using NSNumber = Tag<"NSNumber">;
using NSArray = Tag<"NSArray">;
using NSDictionary = Tag<"NSDictionary">;
using NSError = Tag<"NSError">;
using NSProcessInfo = Tag<"NSProcessInfo">;

using MTLDevice = Tag<"MTLDevice">;
using MTLCompileOptions = Tag<"MTLCompileOptions">;
using MTLLibrary = Tag<"MTLLibrary">;
using MTLFunction = Tag<"MTLFunction">;
using MTLComputePipelineState = Tag<"MTLComputePipelineState">;
using MTLBuffer = Tag<"MTLBuffer">;
using MTLCommandQueue = Tag<"MTLCommandQueue">;
using MTLCommandBuffer = Tag<"MTLCommandBuffer">;
using MTLComputeCommandEncoder = Tag<"MTLComputeCommandEncoder">;

using MPSCommandBuffer = Tag<"MPSCommandBuffer">;
using MPSNDArray = Tag<"MPSNDArray">;
using MPSNDArrayDescriptor = Tag<"MPSNDArrayDescriptor">;
using MPSGraph = Tag<"MPSGraph">;
using MPSGraphDevice = Tag<"MPSGraphDevice">;
using MPSGraphExecutable = Tag<"MPSGraphExecutable">;
using MPSGraphSDPADescriptor = Tag<"MPSGraphSDPADescriptor">;
using MPSGraphShapedType = Tag<"MPSGraphShapedType">;
using MPSGraphTensor = Tag<"MPSGraphTensor">;
using MPSGraphTensorData = Tag<"MPSGraphTensorData">;

struct Message {
  Kind kind;
  std::string_view owner;  // the class or protocol
  std::string_view selector;
  std::string_view encoding;  // see encoding.h
  int since = 0;              // the first macOS that has it; 0: all that we support
};

/// A C function of a framework.
struct Function {
  std::string_view name;
  std::string_view encoding;
};

inline constexpr Kind kClass = Kind::kClass;
inline constexpr Kind kInstance = Kind::kInstance;

inline constexpr Message kMessages[] = {
    {kClass, "NSString", "stringWithUTF8String:", "@@:r*"},
    {kInstance, "NSString", "UTF8String", "r*@:"},
    {kClass, "NSNumber", "numberWithInteger:", "@@:q"},
    {kClass, "NSNumber", "numberWithDouble:", "@@:d"},
    {kClass, "NSArray", "arrayWithObjects:count:", "@@:r^@Q"},
    {kInstance, "NSArray", "count", "Q@:"},
    {kInstance, "NSArray", "objectAtIndex:", "@@:Q"},
    {kClass, "NSDictionary", "dictionaryWithObjects:forKeys:count:", "@@:r^@r^@Q"},
    {kInstance, "NSDictionary", "objectForKey:", "@@:@"},
    {kInstance, "NSError", "localizedDescription", "@@:"},
    {kInstance, "NSError", "code", "q@:"},
    {kClass, "NSProcessInfo", "processInfo", "@@:"},
    {kInstance, "NSProcessInfo", "isOperatingSystemAtLeastVersion:", "B@:{?=qqq}"},

    {kInstance, "MTLDevice", "name", "@@:"},
    {kInstance, "MTLDevice", "supportsFamily:", "B@:q"},
    {kInstance, "MTLDevice", "maxBufferLength", "Q@:"},
    {kInstance, "MTLDevice", "maxThreadgroupMemoryLength", "Q@:"},
    {kInstance, "MTLDevice", "newCommandQueue", "@@:"},
    {kInstance, "MTLDevice", "newLibraryWithSource:options:error:", "@@:@@^@"},
    {kInstance, "MTLDevice", "newComputePipelineStateWithFunction:error:", "@@:@^@"},
    {kInstance, "MTLDevice", "newBufferWithLength:options:", "@@:QQ"},
    {kInstance, "MTLDevice", "newBufferWithBytesNoCopy:length:options:deallocator:", "@@:^vQQ@?"},

    {kClass, "MTLCompileOptions", "new", "@@:"},
    {kInstance, "MTLCompileOptions", "setLanguageVersion:", "v@:Q"},
    {kInstance, "MTLCompileOptions", "setFastMathEnabled:", "v@:B"},
    {kInstance, "MTLCompileOptions", "setMathMode:", "v@:q", 15},
    {kInstance, "MTLLibrary", "newFunctionWithName:", "@@:@"},
    {kInstance, "MTLComputePipelineState", "maxTotalThreadsPerThreadgroup", "Q@:"},
    {kInstance, "MTLBuffer", "contents", "^v@:"},
    {kInstance, "MTLBuffer", "length", "Q@:"},

    {kInstance, "MTLCommandQueue", "commandBuffer", "@@:"},
    {kInstance, "MTLCommandBuffer", "computeCommandEncoder", "@@:"},
    {kInstance, "MTLCommandBuffer", "commit", "v@:"},
    {kInstance, "MTLCommandBuffer", "waitUntilCompleted", "v@:"},
    {kInstance, "MTLCommandBuffer", "status", "Q@:"},
    {kInstance, "MTLCommandBuffer", "error", "@@:"},
    {kInstance, "MTLComputeCommandEncoder", "setComputePipelineState:", "v@:@"},
    {kInstance, "MTLComputeCommandEncoder", "setBuffer:offset:atIndex:", "v@:@QQ"},
    {kInstance, "MTLComputeCommandEncoder", "setBytes:length:atIndex:", "v@:r^vQQ"},
    {kInstance, "MTLComputeCommandEncoder",
     "dispatchThreadgroups:threadsPerThreadgroup:", "v@:{?=QQQ}{?=QQQ}"},
    {kInstance, "MTLComputeCommandEncoder", "endEncoding", "v@:"},

    {kClass, "MPSCommandBuffer", "commandBufferFromCommandQueue:", "@@:@"},
    {kInstance, "MPSCommandBuffer", "rootCommandBuffer", "@@:"},
    {kClass, "MPSNDArrayDescriptor", "descriptorWithDataType:shape:", "@@:I@"},
    {kInstance, "MPSNDArrayDescriptor", "setPreferPackedRows:", "v@:B", 15},
    {kClass, "MPSNDArray", "alloc", "@@:"},
    {kInstance, "MPSNDArray", "initWithBuffer:offset:descriptor:", "@@:@Q@", 15},

    {kClass, "MPSGraphDevice", "deviceWithMTLDevice:", "@@:@"},
    {kClass, "MPSGraphShapedType", "alloc", "@@:"},
    {kInstance, "MPSGraphShapedType", "initWithShape:dataType:", "@@:@I"},
    {kClass, "MPSGraphTensorData", "alloc", "@@:"},
    {kInstance, "MPSGraphTensorData", "initWithMTLBuffer:shape:dataType:", "@@:@@I"},
    {kInstance, "MPSGraphTensorData", "initWithMPSNDArray:", "@@:@"},
    {kInstance, "MPSGraphExecutable", "feedTensors", "@@:"},
    {kInstance, "MPSGraphExecutable", "targetTensors", "@@:"},
    {kInstance, "MPSGraphExecutable",
     "encodeToCommandBuffer:inputsArray:resultsArray:executionDescriptor:", "@@:@@@@"},

    {kClass, "MPSGraph", "new", "@@:"},
    {kInstance, "MPSGraph",
     "compileWithDevice:feeds:targetTensors:targetOperations:compilationDescriptor:", "@@:@@@@@"},
    {kInstance, "MPSGraph", "placeholderWithShape:dataType:name:", "@@:@I@"},
    {kInstance, "MPSGraph", "constantWithScalar:shape:dataType:", "@@:d@I"},
    {kInstance, "MPSGraph", "coordinateAlongAxis:withShape:name:", "@@:q@@"},
    {kInstance, "MPSGraph", "castTensor:toType:name:", "@@:@I@"},
    {kInstance, "MPSGraph", "reshapeTensor:withShape:name:", "@@:@@@"},
    {kInstance, "MPSGraph", "broadcastTensor:toShape:name:", "@@:@@@"},
    {kInstance, "MPSGraph", "transposeTensor:dimension:withDimension:name:", "@@:@QQ@"},
    {kInstance, "MPSGraph", "sliceTensor:dimension:start:length:name:", "@@:@Qqq@"},
    {kInstance, "MPSGraph", "concatTensors:dimension:name:", "@@:@q@"},
    {kInstance, "MPSGraph", "additionWithPrimaryTensor:secondaryTensor:name:", "@@:@@@"},
    {kInstance, "MPSGraph", "subtractionWithPrimaryTensor:secondaryTensor:name:", "@@:@@@"},
    {kInstance, "MPSGraph", "multiplicationWithPrimaryTensor:secondaryTensor:name:", "@@:@@@"},
    {kInstance, "MPSGraph", "divisionWithPrimaryTensor:secondaryTensor:name:", "@@:@@@"},
    {kInstance, "MPSGraph",
     "maximumWithNaNPropagationWithPrimaryTensor:secondaryTensor:name:", "@@:@@@"},
    {kInstance, "MPSGraph", "notEqualWithPrimaryTensor:secondaryTensor:name:", "@@:@@@"},
    {kInstance, "MPSGraph", "lessThanOrEqualToWithPrimaryTensor:secondaryTensor:name:", "@@:@@@"},
    {kInstance, "MPSGraph", "logicalANDWithPrimaryTensor:secondaryTensor:name:", "@@:@@@"},
    {kInstance, "MPSGraph",
     "matrixMultiplicationWithPrimaryTensor:secondaryTensor:name:", "@@:@@@"},
    {kInstance, "MPSGraph",
     "selectWithPredicateTensor:truePredicateTensor:falsePredicateTensor:name:", "@@:@@@@"},
    {kInstance, "MPSGraph", "exponentWithTensor:name:", "@@:@@"},
    {kInstance, "MPSGraph", "logarithmWithTensor:name:", "@@:@@"},
    {kInstance, "MPSGraph", "tanhWithTensor:name:", "@@:@@"},
    {kInstance, "MPSGraph", "reductionMaximumPropagateNaNWithTensor:axis:name:", "@@:@q@"},
    {kInstance, "MPSGraph", "reductionSumWithTensor:axis:name:", "@@:@q@"},
    {kInstance, "MPSGraph",
     "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:scale:name:", "@@:@@@f@", 15},
    {kInstance, "MPSGraph",
     "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:maskTensor:scale:name:",
     "@@:@@@@f@", 15},
    {kInstance, "MPSGraph",
     "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:descriptor:name:", "@@:@@@@@",
     27},
    {kClass, "MPSGraphSDPADescriptor", "descriptorWithScale:", "@@:f", 27},
    {kInstance, "MPSGraphSDPADescriptor", "setMaskTensor:", "v@:@", 27},
    {kInstance, "MPSGraphSDPADescriptor", "setIsCausal:", "v@:B", 27},
    {kInstance, "MPSGraphSDPADescriptor", "setSinksTensor:", "v@:@", 27},
};

inline constexpr Function kFunctions[] = {
    {"MTLCreateSystemDefaultDevice", "@"},
};

/// What a search that found nothing gives. Not null: comparing an address with null is no constant
/// expression to a compiler that checks for undefined behaviour.
inline constexpr const Message* kNoMessage = std::end(kMessages);
inline constexpr const Function* kNoFunction = std::end(kFunctions);

/// The declaration of a message, or kNoMessage.
constexpr const Message* find_message(Kind kind, std::string_view owner,
                                      std::string_view selector) {
  for (const Message& message : kMessages) {
    if (message.kind == kind && message.owner == owner && message.selector == selector) {
      return &message;
    }
  }
  return kNoMessage;
}

constexpr const Function* find_function(std::string_view name) {
  for (const Function& function : kFunctions) {
    if (function.name == name) return &function;
  }
  return kNoFunction;
}

/// A message as it is written in Objective-C: "-[MTLBuffer length]".
std::string title(const Message& message);

/// Where the running system differs from kMessages.
struct Difference {
  const Message* message;
  std::string system_encoding;  // empty: the system has no such message
};

/// Holds the whole table against what the system says of its own methods. Messages newer than
/// `macos` may be missing. The frameworks have to be loaded.
std::vector<Difference> compare_messages(Runtime& runtime, int macos);

}  // namespace sdpa::apple
