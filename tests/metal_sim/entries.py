# SPDX-License-Identifier: MIT
"""Writes the C++ that registers Metal kernels with the simulator.

It reads what C++ cannot see: the attributes of each kernel's parameters, the function constants,
and the host names of template instantiations.

usage: entries.py --output FILE [--instances FILE] [--namespace NAME] [--preprocessor CMD]
                  [--spaces] HEADER...

With --spaces it registers nothing, but instantiates the kernels for a compiler to check.
"""

import argparse
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

BUILT_INS = {
    "threadgroup_position_in_grid": "kThreadgroupPosition",
    "threadgroups_per_grid": "kThreadgroupsPerGrid",
    "thread_position_in_threadgroup": "kThreadPosition",
    "threads_per_threadgroup": "kThreadsPerThreadgroup",
    "dispatch_threads_per_threadgroup": "kDispatchThreadsPerThreadgroup",
    "thread_position_in_grid": "kThreadPositionInGrid",
    "threads_per_grid": "kThreadsPerGrid",
    "thread_index_in_threadgroup": "kThreadIndex",
    "simdgroup_index_in_threadgroup": "kSimdgroupIndex",
    "thread_index_in_simdgroup": "kLaneIndex",
    "simdgroups_per_threadgroup": "kSimdgroupsPerThreadgroup",
    "threads_per_simdgroup": "kThreadsPerSimdgroup",
    "thread_index_in_quadgroup": "kQuadLane",
    "quadgroup_index_in_threadgroup": "kQuadgroupIndex",
}

CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}


class SourceError(ValueError):
    """The Metal source says something that this program does not understand."""


@dataclass
class Parameter:
    source: str
    index: int
    name: str
    read_only: bool
    constant: bool
    optional: bool  # there only if a function constant says so

    def cpp(self) -> str:
        flags = f"{self.read_only}, {self.constant}, {self.optional}".lower()
        return f'{{sim::Source::{self.source}, {self.index}, "{self.name}", {flags}}}'


@dataclass
class Kernel:
    name: str
    is_template: bool
    parameters: list[Parameter]
    max_threads: str


@dataclass
class Instance:
    host_name: str
    function: str
    expression: str


@dataclass
class FunctionConstant:
    name: str
    index: int


def strip_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)


def matching(text: str, start: int) -> int:
    """The index just behind the bracket that closes the one at `start`."""
    opening, closing, depth = text[start], CLOSING[text[start]], 0
    for i in range(start, len(text)):
        depth += (text[i] == opening) - (text[i] == closing)
        if depth == 0:
            return i + 1
    raise SourceError(f"a '{opening}' is never closed: {text[start : start + 60]!r}")


def split_commas(text: str) -> list[str]:
    parts, depth, begin = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "([{<") - (char in ")]}>")
        if char == "," and depth == 0:
            parts.append(text[begin:i])
            begin = i + 1
    parts.append(text[begin:])
    return [part.strip() for part in parts if part.strip()]


def parse_parameter(text: str) -> Parameter:
    declaration, _, rest = text.partition("[[")
    attributes = rest.rpartition("]]")[0]
    name = re.search(r"(\w+)\s*$", declaration)
    if not name or not attributes:
        raise SourceError(f"a kernel parameter without a name or an attribute: {text!r}")
    constant = re.search(r"\bconstant\b", declaration) is not None
    read_only = constant or re.search(r"\bconst\b", declaration) is not None
    optional = "function_constant" in attributes
    for attribute in split_commas(attributes):
        bound = re.fullmatch(r"(buffer|threadgroup(?:_argument)?)\s*\((\d+)\)", attribute)
        if bound:
            source = "kBuffer" if bound[1] == "buffer" else "kThreadgroupMemory"
            return Parameter(source, int(bound[2]), name[1], read_only, constant, optional)
        if attribute in BUILT_INS:
            return Parameter(BUILT_INS[attribute], 0, name[1], True, False, optional)
    raise SourceError(f"an unknown attribute of a kernel parameter: {text!r}")


KERNEL = re.compile(
    r"(?P<attribute>\[\[[^\]]*\bkernel\b(?:[^\]]|\](?!\]))*\]\]|\bkernel\b)\s+"
    r"(?P<more>(?:\[\[.*?\]\]\s*)*)void\s+(?P<name>\w+)\s*\("
)


def is_template(text: str, start: int) -> bool:
    """Does `template <...>` stand before this position?"""
    return re.search(r"template\s*<[^;{}]*>\s*$", text[:start]) is not None


def parse_kernels(text: str) -> list[Kernel]:
    kernels = []
    for found in KERNEL.finditer(text):
        end = matching(text, found.end() - 1)
        if text[end:].lstrip()[:1] != "{":
            continue  # a declaration or an explicit instantiation
        parameters = [parse_parameter(p) for p in split_commas(text[found.end() : end - 1])]
        attributes = found["attribute"] + found["more"]
        limit = re.search(r"max_total_threads_per_threadgroup\((\d+)\)", attributes)
        kernels.append(
            Kernel(
                found["name"],
                is_template(text, found.start()),
                parameters,
                limit[1] if limit else "1024",
            )
        )
    return kernels


INSTANCE = re.compile(
    r"template\s*\[\[\s*host_name\(\s*\"([^;]*?)\"\s*\)\s*\]\]\s*(?:\[\[\s*kernel\s*\]\]|kernel)\s*"
    r"decltype\s*\(([^;]*)\)\s*([^;]*);"
)


def parse_instances(text: str) -> list[Instance]:
    instances = []
    for name, function, again in INSTANCE.findall(text):
        expression = function.strip()
        if expression != again.strip():
            raise SourceError(f"{name}: decltype({expression}) is not the type of {again.strip()}")
        host_name = re.sub(r'"\s*"', "", name)  # adjacent literals
        function = re.split(r"\s*<", expression)[0].rpartition("::")[2]
        instances.append(Instance(host_name, function, expression))
    return instances


FUNCTION_CONSTANT = re.compile(
    r"\bconstant\s+[\w:]+\s+(\w+)\s*\[\[\s*function_constant\((\d+)\)\s*\]\]\s*;"
)


def parse_constants(text: str) -> list[FunctionConstant]:
    return [FunctionConstant(n, int(i)) for n, i in FUNCTION_CONSTANT.findall(text)]


def preprocess(text: str, command: str) -> str:
    """Expands the macros of an instantiation file; what it includes is not wanted here."""
    own = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#include"))
    result = subprocess.run(
        [*shlex.split(command), "-E", "-P", "-x", "c++", "-"],
        input=own,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def generate_spaces(headers: list[str], kernels: list[Kernel], instances: list[Instance]) -> str:
    names = [i.expression for i in instances] + [k.name for k in kernels if not k.is_template]
    includes = "\n".join(f'#include "{header}"' for header in headers)
    uses = "\n".join(f"  (void)&{name};" for name in names)
    return f"""// Generated. Instantiates Metal kernels so that their address spaces are checked.
#include "msl.h"
{includes}

void use_kernels() {{
{uses}
}}
"""


def generate(
    headers: list[str],
    kernels: list[Kernel],
    instances: list[Instance],
    constants: list[FunctionConstant],
    namespace: str,
) -> str:
    prefix = f"{namespace}::" if namespace else ""
    by_name = {kernel.name: kernel for kernel in kernels}
    instances = instances + [Instance(k.name, k.name, k.name) for k in kernels if not k.is_template]
    includes = "\n".join(f'#include "{header}"' for header in headers)
    if namespace:
        includes = f"namespace {namespace} {{\n{includes}\n}}  // namespace {namespace}"
    made = []
    for instance in instances:
        if instance.function not in by_name:
            raise SourceError(f"{instance.host_name} instantiates {instance.function}, no kernel")
        kernel = by_name[instance.function]
        parameters = ",\n       ".join(p.cpp() for p in kernel.parameters)
        made.append(
            f"  kernels.push_back(sim::make_kernel<&{prefix}{instance.expression}>(\n"
            f'      "{instance.host_name}",\n      {{{parameters}}},\n      {kernel.max_threads}));'
        )
    rows = "\n".join(
        f"      {{{c.index}, &{prefix}{c.name}, sizeof({prefix}{c.name})}}," for c in constants
    )
    calls = "\n".join(made)
    return f"""// Generated. Registers Metal kernels with the simulator.
#include "msl_entry.h"
#include "msl.h"
{includes}

namespace {{

std::vector<sim::Kernel> make_kernels() {{
  std::vector<sim::Kernel> kernels;
{calls}
  return kernels;
}}

const sim::Registration registration(
    make_kernels(),
    {{
{rows}
    }});
}}  // namespace
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("headers", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--instances", type=Path)
    parser.add_argument("--namespace", default="")
    parser.add_argument("--preprocessor", default="c++")
    parser.add_argument("--spaces", action="store_true")
    options = parser.parse_args()
    text = "".join(strip_comments(Path(h).read_text()) for h in options.headers)
    instances = parse_instances(text)
    if options.instances:
        source = strip_comments(options.instances.read_text())
        instances += parse_instances(preprocess(source, options.preprocessor))
    kernels = parse_kernels(text)
    if options.spaces:
        source = generate_spaces(options.headers, kernels, instances)
    else:
        constants = parse_constants(text)
        source = generate(options.headers, kernels, instances, constants, options.namespace)
    options.output.write_text(source)


if __name__ == "__main__":
    main()
