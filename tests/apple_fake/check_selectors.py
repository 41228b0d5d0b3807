# SPDX-License-Identifier: MIT
"""Looks every selector that is sent to Apple's classes up in lists that others publish.

usage: check_selectors.py PRINT_MESSAGES CACHE

check_messages.py compares types where metal-cpp has them. Here names are looked for in everything
that can be had of the other frameworks: pyobjc's metadata, which has the methods whose types need a
word; the declarations that torch ships for older SDKs; and the selectors in tensorflow-metal, which
Apple compiled. A selector that is in none has to be among the exceptions, with the reason.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import fetch_wheel
from check_messages import Declared, read_headers

_ALL = "a method of every class; metal-cpp sends alloc and init in its place"
_HEADER = "; Apple's header {} declares it"
_ATTENTION = "scaledDotProductAttentionWithQueryTensor:keyTensor:valueTensor:"
_MATMUL_HEADER = _HEADER.format("MPSGraphMatrixMultiplicationOps.h")
_NEWER = "macOS 15, which tensorflow-metal is older than" + _MATMUL_HEADER
_NEWEST = "macOS 27" + _MATMUL_HEADER
_UNUSED = "TensorFlow does not use it" + _HEADER

#: Selectors that no list has, and why.
EXCEPTIONS = {
    "stringWithUTF8String:": "Foundation's; metal-cpp sends stringWithCString:encoding: for it",
    "new": _ALL,
    "rootCommandBuffer": _UNUSED.format("MPSCommandBuffer.h"),
    "deviceWithMTLDevice:": _UNUSED.format("MPSGraphDevice.h"),
    "coordinateAlongAxis:withShape:name:": _UNUSED.format("MPSGraphTensorShapeOps.h"),
    "maximumWithNaNPropagationWithPrimaryTensor:secondaryTensor:name:": _UNUSED.format(
        "MPSGraphArithmeticOps.h"
    ),
    "reductionMaximumPropagateNaNWithTensor:axis:name:": _UNUSED.format("MPSGraphReductionOps.h"),
    _ATTENTION + "scale:name:": _NEWER,
    _ATTENTION + "maskTensor:scale:name:": _NEWER,
    _ATTENTION + "descriptor:name:": _NEWEST,
    "descriptorWithScale:": _NEWEST,
    "setMaskTensor:": _NEWEST,
    "setIsCausal:": _NEWEST,
    "setSinksTensor:": _NEWEST,
}

#: Selectors by the name of the list that has them.
Lists = dict[str, set[str]]

OBJC_METHOD = re.compile(r"^- \([^)]*\)([^;]+);", re.MULTILINE)
OBJC_PROPERTY = re.compile(r"^@property\(readwrite, nonatomic\) \w+ (\w+);", re.MULTILINE)


def of_pyobjc(metadata: str) -> set[str]:
    """Everything that the metadata names as a method of a class."""
    return set(re.findall(r'b"([A-Za-z0-9]+:[\w:]*|[a-z]\w+)"', metadata))


def of_declarations(header: str) -> set[str]:
    """The selectors that an Objective-C header declares; a property's is its setter's."""
    methods = {
        "".join(re.findall(r"(\w+:)\s*\(", text)) or text.strip()
        for text in OBJC_METHOD.findall(header)
    }
    setters = {f"set{name[0].upper()}{name[1:]}:" for name in OBJC_PROPERTY.findall(header)}
    return methods | setters


def of_binary(image: bytes) -> set[str]:
    """All names in a library: the selectors that it sends are among them, each whole."""
    names = re.findall(rb"(?<=\0)[A-Za-z_][\w:]*(?=\0)", image)
    return {name.decode() for name in names}


def torch_header() -> Path | None:
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0])
    header = folder / "include/ATen/native/mps/MPSGraphSequoiaOps.h"
    return header if header.exists() else None


def read_lists(cache: Path) -> Lists | None:
    """None, with a loud line, where one cannot be had."""
    metal = fetch_wheel.unpacked(fetch_wheel.MLX, "mlx/include/metal_cpp/", cache)
    shaders = fetch_wheel.unpacked(fetch_wheel.PYOBJC_SHADERS, "MetalPerformanceShaders/", cache)
    graph = fetch_wheel.unpacked(fetch_wheel.PYOBJC_GRAPH, "MetalPerformanceShadersGraph/", cache)
    apple = fetch_wheel.unpacked(fetch_wheel.TENSORFLOW_METAL, "tensorflow-plugins/", cache)
    header = torch_header()
    if header is None:
        print("!!! NOT CHECKED: torch is not installed, so its header cannot be read")
    if metal is None or shaders is None or graph is None or apple is None or header is None:
        return None
    return {
        "metal-cpp": read_headers(metal).selectors,
        "pyobjc": of_pyobjc((shaders / "_metadata.py").read_text())
        | of_pyobjc((graph / "_metadata.py").read_text()),
        "torch's header": of_declarations(header.read_text()),
        "tensorflow-metal": of_binary((apple / "libmetal_plugin.dylib").read_bytes()),
    }


def problems(selectors: set[str], lists: Lists, exceptions: dict[str, str]) -> list[str]:
    """What is wrong with a set of selectors, a sentence each."""
    known: set[str] = set().union(*lists.values())
    unknown = [
        f"{s} is in no list and is no exception" for s in selectors - known - set(exceptions)
    ]
    stale = [f"the exception {s} is in a list" for s in set(exceptions) & known]
    unused = [f"the exception {s} is not sent" for s in set(exceptions) - selectors]
    return sorted(unknown + stale + unused)


def misspelled(selector: str) -> str:
    return selector.replace("With", "Wiht", 1) if "With" in selector else selector[:-1] + "z:"


def main(print_messages: str, cache: str) -> int:
    lists = read_lists(Path(cache))
    if lists is None:
        return 0
    listed = subprocess.run([print_messages], capture_output=True, text=True, check=True).stdout
    selectors = {Declared(*line.split()).selector for line in listed.splitlines()}
    for selector in sorted(selectors):
        owners = [name for name, names in lists.items() if selector in names]
        print(f"{selector}: {', '.join(owners) or 'no list: ' + EXCEPTIONS.get(selector, '?')}")
    for name, names in lists.items():
        print(f"{name}: {len(selectors & names)} of {len(selectors)} selectors")
    print(f"no list: {len(EXCEPTIONS)}")
    found = problems(selectors, lists, EXCEPTIONS)
    for wrong in map(misspelled, selectors):
        if not problems({wrong}, lists, {}):
            found.append(f"{wrong}, which is misspelled, would go unnoticed")
    print("\n".join(f"WRONG: {sentence}" for sentence in found))
    return len(found) > 0 or any(not selectors & names for names in lists.values())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
