# SPDX-License-Identifier: MIT
"""Copies Metal sources of other projects to a folder, with the few changes that C++ needs.

usage: rewrite.py SOURCE_ROOT TARGET_ROOT FILE...

The files, and what they include by a path under SOURCE_ROOT, keep their paths.
"""

import re
import sys
from pathlib import Path

DECLARATION = re.compile(
    r"^(?P<indent>[ \t]+)threadgroup\s+(?P<type>[\w:]+)\s+(?P<name>\w+)\s*"
    r"(?P<sizes>(?:\[[^\]\n]*\]\s*)*);",
    re.MULTILINE,
)
SPECIALISATION = re.compile(
    r"^template <[^>]*>\nstruct \w+<(?:device|constant|threadgroup) \w+\*> \{[^}]*\};\n",
    re.MULTILINE,
)
ARGUMENT = re.compile(r"\[\[\s*threadgroup\((\d+)\)\s*\]\]")
SWIZZLE = re.compile(r"(\b[A-Za-z_]\w*|[\])])\.(?!xy\b|zw\b|xyz\b)([xyzw]{2,4})\b(?!\s*\()")
INSTANTIATIONS = re.compile(
    r"^#define (?:instantiate|INSTANTIATE)_\w+\(.*?(?=^#else|\Z)", re.MULTILINE | re.DOTALL
)


def share_arrays(text: str) -> str:
    """A threadgroup variable in a body becomes storage that the threadgroup's lanes share."""
    return DECLARATION.sub(r"\g<indent>TG_ARRAY(\g<type>, \g<name>, \g<sizes>);", text)


def merge_address_spaces(text: str) -> str:
    """Specialisations that differ in the address space alone: the `thread` one does for all."""
    return SPECIALISATION.sub(r"#ifdef MSL_SPACES\n\g<0>#endif\n", text)


def rename_argument_attribute(text: str) -> str:
    """`threadgroup` is a macro in C++, so the attribute of that name needs another."""
    return ARGUMENT.sub(r"[[threadgroup_argument(\1)]]", text)


def drop_instantiations(text: str) -> str:
    """We instantiate what we test; a hundred more would only be compiled."""
    return INSTANTIATIONS.sub("", text)


def name_swizzles(text: str) -> str:
    """Elements in any order, which C++ has no members for; see msl_vector.h."""
    places = {letter: str(place) for place, letter in enumerate("xyzw")}
    return SWIZZLE.sub(
        lambda found: (
            f"{found[1]}.template swizzle<{', '.join(places[letter] for letter in found[2])}>()"
        ),
        text,
    )


RULES = (
    share_arrays,
    name_swizzles,
    merge_address_spaces,
    rename_argument_attribute,
    drop_instantiations,
)


def rewrite(text: str) -> str:
    for rule in RULES:
        text = rule(text)
    return text


def copy_rewritten(source: Path, target: Path, files: list[str]) -> list[str]:
    """Returns the copied files' paths under `target`."""
    pending, copied = list(files), []
    while pending:
        name = pending.pop()
        if name in copied or not (source / name).is_file():
            continue
        copied.append(name)
        text = (source / name).read_text()
        pending += re.findall(r'#include [<"]([^">]+)[">]', text)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(rewrite(text))
    return copied


if __name__ == "__main__":
    copy_rewritten(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
