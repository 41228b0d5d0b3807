# SPDX-License-Identifier: MIT
"""Finds what Apple's Metal compiler rejects and a C++ compiler does not.

usage: lint.py FILE...    (all files of a library together: names of types are looked up in all)

It reads tokens, not grammar. A name counts as a type if it is one of Metal's or is declared as one
in the files; a call is recursive if it can reach a function of the same name and number of
parameters.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from entries import BUILT_INS, KERNEL, SourceError, matching, parse_parameter, split_commas

SPACES = {"device", "constant", "thread", "threadgroup", "threadgroup_imageblock"}
SCALARS = "bool char uchar short ushort int uint long ulong half float bfloat size_t void auto"
NUMBERED = [
    "bool",
    "char",
    "uchar",
    "short",
    "ushort",
    "int",
    "uint",
    "long",
    "ulong",
    "half",
    "float",
    "bfloat",
]
TYPES = {*SCALARS.split(), *(f"{name}{n}" for name in NUMBERED for n in (2, 3, 4))}

# Metal 3.1 is C++14 without these. What is not here although it is newer (if constexpr, nested
# namespaces) Apple's compiler takes: MLX's kernels have it.
FORBIDDEN = {
    r"\bdouble\b": "Metal has no double",
    r"\blong\s+long\b": "Metal has no long long; long has 64 bits",
    r"(?<![\w.])(?:\d+\.\d*|\.\d+|\d+e[+-]?\d+)(?:e[+-]?\d+)?(?![\w.])":
        "a literal without f is a double in C++ and a float in Metal",
    r"\b(?:concept|requires|consteval|constinit|co_await|co_yield|co_return)\b":
        "this is C++20; Metal 3.1 has C++14",
    r"\b(?:auto\s*&?\s*\[\w)": "structured bindings are C++17; Metal 3.1 has C++14",
    r"[{,]\s*\.\w+\s*=(?!=)": "designated initialisers are C++20; Metal 3.1 has C++14",
    r"\b(?:try|catch|throw|new|delete|virtual|dynamic_cast|typeid|goto|thread_local)\b":
        "Metal leaves this part of C++ out",
    r"(?<![\w\])])\[[\s&=]*(?:\w+[\s&=,\w]*)?\]\s*\([^()]*\)\s*(?:->\s*\w+\s*)?\{":
        "Metal 3.1 has no lambdas",
    r"\bstd\s*::": "Metal has no namespace std; its library is in metal",
    r"#\s*include\s*<(?!metal|simd/|MetalPerformancePrimitives|c10/metal)":
        "Metal has no such header",
    r"\(\s*\*\s*\w*\s*\)\s*\(": "Metal has no function pointers",
}  # fmt: skip


@dataclass(frozen=True)
class Complaint:
    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass
class Source:
    name: str
    text: str  # comments, strings and preprocessor lines are blank, positions are kept

    def complain(self, position: int, text: str) -> Complaint:
        return Complaint(self.name, self.text.count("\n", 0, position) + 1, text)


def blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def read_source(name: str, text: str) -> Source:
    text = re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\])*\"", blank, text, flags=re.DOTALL)
    return Source(name, text)


def without_directives(source: Source) -> Source:
    """Macros are checked where they are used in C++ anyway; their text is no grammar."""
    lines = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", re.MULTILINE)
    return Source(source.name, lines.sub(blank, source.text))


def declared_types(sources: list[Source]) -> set[str]:
    names = set(TYPES)
    for source in sources:
        names |= set(re.findall(r"\b(?:struct|class|enum|union)\s+(\w+)", source.text))
        names |= set(re.findall(r"\b(?:typename|class)\s+(\w+)", source.text))
        names |= set(re.findall(r"\busing\s+(\w+)\s*=", source.text))
        names |= set(re.findall(r"\btypedef\s[^;]*?\b(\w+)\s*;", source.text))
    return names


def check_words(source: Source) -> Iterator[Complaint]:
    for pattern, reason in FORBIDDEN.items():
        for found in re.finditer(pattern, source.text):
            word = " ".join(found[0].split())
            yield source.complain(found.start(), f"'{word}': {reason}")


POINTER = re.compile(
    r"\b(?P<type>\w+)\s*(?P<arguments><[^;{}()<>]*>)?\s*(?:const\s*)?(?P<sign>[*&])(?!&)"
)


def check_pointers(source: Source, types: set[str]) -> Iterator[Complaint]:
    """Every pointer and reference says in which address space its target lies."""
    for found in POINTER.finditer(source.text):
        if found["type"] not in types:
            continue
        before = re.split(r"[;{}(,<>=]", source.text[max(0, found.start() - 200) : found.start()])[
            -1
        ]
        after = source.text[found.end() :].lstrip()
        if not re.match(r"[\w>)*\[,&]", after):
            continue
        words = set(re.findall(r"\w+", before))
        if "return" in words or words & SPACES:
            continue
        shown = " ".join(source.text[found.start() : found.end()].split())
        yield source.complain(found.start(), f"'{shown}' names no address space")


@dataclass
class Body:
    """A pair of braces and the words before it."""

    head: str
    head_start: int
    begin: int
    end: int


def bodies(text: str, begin: int = 0, end: int | None = None) -> Iterator[Body]:
    """The outermost braces of a stretch of text."""
    position, head_start = begin, begin
    end = len(text) if end is None else end
    while position < end:
        char = text[position]
        if char == ";":
            head_start = position + 1
        elif char == "(":
            position = matching(text, position) - 1
        elif char == "{":
            close = matching(text, position)
            yield Body(text[head_start:position], head_start, position + 1, close - 1)
            position, head_start = close - 1, close
        position += 1


def is_namespace(body: Body) -> bool:
    return re.search(r"\bnamespace\b[^()]*$", body.head) is not None


def is_type(body: Body) -> bool:
    head = re.sub(r"template\s*<[^{}]*?>\s*(?=struct|class|union)", "", body.head)
    return re.match(r"\s*(?:typedef\s+)?(?:struct|class|union)\b[^()=]*$", head) is not None


def is_function(body: Body) -> bool:
    return "(" in body.head and not is_type(body) and "=" not in body.head.split("(")[0]


def scopes(text: str, begin: int = 0, end: int | None = None) -> Iterator[tuple[str, Body]]:
    """All bodies, with what they are: 'type', 'function' or 'member'."""
    for body in bodies(text, begin, end):
        if is_namespace(body):
            yield from scopes(text, body.begin, body.end)
        elif is_type(body):
            yield "type", body
            for kind, inner in scopes(text, body.begin, body.end):
                yield ("member" if kind == "function" else kind), inner
        elif is_function(body):
            yield "function", body


def signature(head: str) -> tuple[str, list[str], str] | None:
    """Name, parameters, and what follows them."""
    head = re.sub(r"\[\[.*?\]\]", lambda m: " " * len(m[0]), head, flags=re.DOTALL)
    for found in re.finditer(r"(~?\b\w+|operator\s*\S+?)\s*\(", head):
        if found[1] in {"decltype", "alignas", "sizeof", "alignof", "__attribute__"}:
            continue
        close = matching(head, found.end() - 1)
        return found[1], split_commas(head[found.end() : close - 1]), head[close:]
    return None


def check_members(source: Source) -> Iterator[Complaint]:
    """A member function says in which address space its object lies."""
    owner = ""
    for kind, body in scopes(source.text):
        if kind == "type":
            named = re.findall(r"\b(?:struct|class|union)\s+(\w+)", body.head)
            owner = named[-1] if named else ""
        if kind != "member" or re.search(r"\b(?:static|friend)\b", body.head):
            continue
        found = signature(body.head)
        if not found or found[0] == owner:
            continue
        if not set(re.findall(r"\w+", found[2].split(":")[0])) & SPACES:
            where = source.complain(body.begin, "").line
            yield Complaint(
                source.name,
                where,
                f"member function {found[0]} has no 'thread' after its parameters",
            )


@dataclass(frozen=True)
class Function:
    name: str
    parameters: int


def calls(text: str) -> Iterator[Function]:
    for found in re.finditer(r"\b(\w+)\s*(<[^;{}()]*>)?\s*\(", text):
        if found[2] and re.search(r"[-+]", found[2]):
            continue  # another instantiation of a template, counted up or down
        end = matching(text, found.end() - 1)
        yield Function(found[1], len(split_commas(text[found.end() : end - 1])))


def check_recursion(sources: list[Source]) -> Iterator[Complaint]:
    """Overloads with equally many parameters cannot be told apart, and are left out."""
    graph: dict[Function, set[Function]] = {}
    places: dict[Function, list[tuple[Source, int]]] = {}
    for source in sources:
        for kind, body in scopes(source.text):
            found = signature(body.head) if kind != "type" else None
            if not found:
                continue
            function = Function(found[0], len(found[1]))
            places.setdefault(function, []).append((source, body.begin))
            graph.setdefault(function, set()).update(calls(source.text[body.begin : body.end]))
    for function, defined in places.items():
        if len(defined) == 1 and function in reachable(graph, function):
            source, position = defined[0]
            yield source.complain(position, f"{function.name} calls itself; Metal has no recursion")


def reachable(graph: dict[Function, set[Function]], start: Function) -> set[Function]:
    seen: set[Function] = set()
    pending = list(graph[start])
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        pending += graph.get(function, ())
    return seen


VARIABLE = re.compile(
    r"^\s*(?P<head>(?:[\w:]+(?:<[^;=]*>)?[\s&*]+)+)(?P<name>\w+)\s*(?:\[(?!\[)[^;]*\])?\s*(?P<rest>=[^;]*|\[\[[^;]*)?;?\s*$"
)
NO_VARIABLE = re.compile(
    r"\b(?:using|typedef|struct|class|enum|union|template|return|extern|friend|static_assert|namespace)\b"
)


def statements(text: str, begin: int, end: int) -> Iterator[tuple[int, str]]:
    """The declarations of a namespace or a type that have no body."""
    position = begin
    for body in [*bodies(text, begin, end), None]:
        stop = body.head_start if body else end
        for piece in re.finditer(r"[^;]+;", text[position:stop]):
            yield position + piece.start(), piece[0]
        if body is None:
            return
        if "=" in body.head and not is_function(body):
            yield body.head_start, body.head
        position = body.end + 1


def declaration_scopes(
    text: str, begin: int, end: int, kind: str
) -> Iterator[tuple[int, int, str]]:
    yield begin, end, kind
    for body in bodies(text, begin, end):
        if is_namespace(body):
            yield from declaration_scopes(text, body.begin, body.end, "namespace")
        elif is_type(body):
            yield from declaration_scopes(text, body.begin, body.end, "type")


def check_variables(source: Source) -> Iterator[Complaint]:
    """What lives longer than a thread is constant, and has its value from the start."""
    for begin, end, kind in declaration_scopes(source.text, 0, len(source.text), "namespace"):
        for position, statement in statements(source.text, begin, end):
            found = VARIABLE.match(statement)
            if not found or NO_VARIABLE.search(statement):
                continue
            words = set(found["head"].split())
            if kind == "type" and "static" not in words:
                continue
            start = position + len(statement) - len(statement.lstrip())
            if "constant" not in words:
                text = f"variable {found['name']} is not in the constant address space"
                yield source.complain(start, text)
            elif not found["rest"]:
                yield source.complain(start, f"constant {found['name']} has no initialiser")
    for kind, body in scopes(source.text):
        if kind == "type":
            continue
        for found in re.finditer(
            r"\bstatic\b(?!\s*_assert)(?![^;]*\bconstant\b)[^;]*",
            source.text[body.begin : body.end],
        ):
            yield source.complain(body.begin + found.start(), "a static variable in a function")


def check_kernel(source: Source, found: re.Match[str]) -> Iterator[Complaint]:
    end = matching(source.text, found.end() - 1)
    seen: dict[tuple[str, int], str] = {}
    for text in split_commas(source.text[found.end() : end - 1]):
        try:
            parameter = parse_parameter(text)
        except SourceError as error:
            yield source.complain(found.start(), f"kernel {found['name']}: {error}")
            continue
        if parameter.source in BUILT_INS.values():
            continue
        place = (parameter.source, parameter.index)
        if place in seen:
            text = f"{seen[place]} and {parameter.name} have the same index {parameter.index}"
            yield source.complain(found.start(), f"kernel {found['name']}: {text}")
        seen[place] = parameter.name
        if parameter.index > 30:
            yield source.complain(
                found.start(), f"kernel {found['name']}: index {parameter.index} is above 30"
            )


def check_attributes(source: Source) -> Iterator[Complaint]:
    """[[kernel]] stands before void, an argument's attribute behind its name."""
    for found in KERNEL.finditer(source.text):
        if source.text[matching(source.text, found.end() - 1) :].lstrip()[:1] == "{":
            yield from check_kernel(source, found)
    for found in re.finditer(
        r"\)\s*\[\[\s*(?:kernel|host_name)\b|\bvoid\s*\[\[\s*kernel\b", source.text
    ):
        yield source.complain(found.start(), "the attribute must stand before the return type")
    for found in re.finditer(r"\[\[\s*(?:buffer|threadgroup)\s*\(\d+\)\s*\]\]\s*\w", source.text):
        yield source.complain(found.start(), "the attribute must stand behind the argument's name")
    for found in re.finditer(r"\[\[\s*kernel\s*\]\]\s+(?!void\b|decltype\b)\w+", source.text):
        yield source.complain(found.start(), "a kernel must return void")


def lint(files: dict[str, str]) -> list[Complaint]:
    sources = [read_source(name, text) for name, text in files.items()]
    complaints = [c for source in sources for c in check_words(source)]
    plain = [without_directives(source) for source in sources]
    types = declared_types(plain)
    for source in plain:
        complaints += check_pointers(source, types)
        complaints += check_members(source)
        complaints += check_variables(source)
        complaints += check_attributes(source)
    complaints += check_recursion(plain)
    return sorted(set(complaints), key=lambda c: (c.file, c.line, c.text))


def main() -> int:
    complaints = lint({name: Path(name).read_text() for name in sys.argv[1:]})
    for complaint in complaints:
        print(complaint)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
