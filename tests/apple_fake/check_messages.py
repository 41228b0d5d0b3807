# SPDX-License-Identifier: MIT
"""Compares the declared messages with metal-cpp, Apple's own C++ headers for Metal.

usage: check_messages.py PRINT_MESSAGES CACHE

metal-cpp has every selector as a string and every method as a C++ signature. Both were written by
Apple, so a wrong name, a wrong width or a wrong sign in messages.h shows here. The headers come
from MLX's wheel at test time. What metal-cpp does not cover is listed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import fetch_wheel

BASIC = {
    "void": "v",
    "bool": "B",
    "float": "f",
    "double": "d",
    "UInteger": "Q",
    "Integer": "q",
    "uint32_t": "I",
    "int32_t": "i",
    "uint64_t": "Q",
    "unsigned long": "Q",
    "unsigned long long": "Q",
    "long": "q",
    "long long": "q",
    "Size": "{?=QQQ}",
    "OperatingSystemVersion": "{?=qqq}",
    "CFTimeInterval": "d",
}
NAMESPACE = re.compile(r"\b(?:NS|MTL|MTL4|std|class|struct)(?:::|\s)")
TYPE = re.compile(r"(const )?(\w[\w ]*?)\s*(const)?\s*((?:\*\s*(?:const)?\s*)*)(\[\])?$")
METHOD = re.compile(
    r"_INLINE ([^\n;{}()]+?)\s*(?:NS|MTL|MTL4)::(\w+)::\w+\(([^\n]*)\)(?: const)?\s*\{([^{}]*)\}"
)
SENT = re.compile(r"sendMessage(?:Safe)?<[^(]*>\([^,]*, _\w+_PRIVATE_SEL\((\w+)\)")
SELECTOR = re.compile(r'_PRIVATE_DEF_SEL\((\w+),\s*"([^"]+)"\)')
ENUM = re.compile(r"_(?:MTL|NS)_(?:ENUM|OPTIONS)\(([\w:]+), (\w+)\)")


class Declared(NamedTuple):
    kind: str
    owner: str
    selector: str
    encoding: str


class Headers(NamedTuple):
    selectors: set[str]
    signatures: dict[tuple[str, str], set[str]]  # class and selector


def pointer(base: str, stars: int, is_const: bool) -> str:
    if base == "char":
        return ("r" if is_const else "") + "^" * (stars - 1) + "*"
    if base in BASIC:
        return ("r" if is_const else "") + "^" * stars + BASIC[base]
    return ("r" if is_const and stars > 1 else "") + "^" * (stars - 1) + "@"  # an object


def encode(cpp_type: str, enums: dict[str, str]) -> str:
    """The Objective-C encoding of a type of metal-cpp's; "?" for one that is not understood."""
    text = NAMESPACE.sub("", cpp_type).strip()
    if "(^" in text or re.search(r"(Handler|Block)$", text):
        return "@?"
    parts = TYPE.match(text)
    if not parts:
        return "?"
    stars = parts[4].count("*") + bool(parts[5])
    base = enums.get(parts[2].strip(), parts[2].strip())
    if stars:
        return pointer(base, stars, bool(parts[1] or parts[3]))
    return BASIC.get(base, "?")


def parameters(text: str) -> list[str]:
    """The types of a parameter list, without the names."""
    split = [p.strip() for p in re.split(r",(?![^(]*\))", text) if p.strip()]
    return [p if "(^" in p else re.sub(r"\w+(\[\])?$", r"\1", p) for p in split]


def read_headers(folder: Path) -> Headers:
    files = sorted([*folder.glob("Foundation/*.hpp"), *folder.glob("Metal/*.hpp")])
    text = "\n".join(file.read_text(errors="replace") for file in files)
    enums = {name: NAMESPACE.sub("", base) for base, name in ENUM.findall(text)}
    names = dict(SELECTOR.findall(text))
    signatures: dict[tuple[str, str], set[str]] = defaultdict(set)
    for result, owner, arguments, body in METHOD.findall(text):
        sent = SENT.search(body)
        if sent and sent[1] in names:
            types = "".join(encode(p, enums) for p in parameters(arguments))
            signatures[owner, names[sent[1]]].add(encode(result, enums) + "@:" + types)
    return Headers(set(names.values()), signatures)


def verdict(message: Declared, headers: Headers) -> str:
    """same, constness, another name, or what differs."""
    if message.selector not in headers.selectors:
        return "outside"
    owner = re.sub("^(MTL|NS)", "", message.owner)
    theirs = headers.signatures.get((owner, message.selector), set())
    if not theirs:
        return "name only"
    if message.encoding in theirs:
        return "same"
    if message.encoding.replace("r", "") in {t.replace("r", "") for t in theirs}:
        return "same but for const"
    return f"DIFFERS: metal-cpp has {' or '.join(sorted(theirs))}"


def is_blind(message: Declared, headers: Headers) -> bool:
    """Whether a wrong type in a message that agrees would go unnoticed."""
    wrong = [message.encoding + "Q", message.encoding.replace("Q", "I") + "I"]
    return not all(
        verdict(message._replace(encoding=encoding), headers).startswith("DIFFERS")
        for encoding in wrong
    )


def main(print_messages: str, cache: str) -> int:
    folder = fetch_wheel.unpacked(fetch_wheel.MLX, "mlx/include/metal_cpp/", Path(cache))
    if folder is None:
        return 0
    headers = read_headers(folder)
    listed = subprocess.run([print_messages], capture_output=True, text=True, check=True).stdout
    messages = [Declared(*line.split()) for line in listed.splitlines()]
    verdicts: dict[str, int] = defaultdict(int)
    for message in messages:
        found = verdict(message, headers)
        verdicts[found.split(":")[0]] += 1
        verdicts["BLIND"] += found == "same" and is_blind(message, headers)
        if found != "same":
            print(f"{message.kind}[{message.owner} {message.selector}] {message.encoding}: {found}")
    print(f"{len(messages)} messages:", ", ".join(f"{n} {v}" for v, n in verdicts.items()))
    return verdicts["DIFFERS"] + verdicts["BLIND"] > 0 or verdicts["same"] == 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
