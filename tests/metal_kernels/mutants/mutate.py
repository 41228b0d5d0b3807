# SPDX-License-Identifier: MIT
"""Writes kernels that can make every mistake of the lists, one at a time, chosen while they run.

usage: mutate.py KERNEL_FOLDER OUTPUT_FOLDER

Makes sdpa/metal/kernels/*.h in the output folder, where MUTANT(n) asks for mistake n, and
mutant_names.inc with a line for each. Fails if a text of the list does not occur.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

from gradient_mutations import GRADIENT_MUTATIONS
from mutations import MUTATIONS, Mutation

BARRIER = re.compile(r"(?:threadgroup|simdgroup)_barrier\([^;]*\);")


class ListError(ValueError):
    """The list names something that the kernels do not have."""


def barriers(files: dict[str, str]) -> list[Mutation]:
    """Every barrier, left out."""
    found = []
    for name, text in files.items():
        seen: dict[str, int] = {}
        for number, barrier in enumerate(BARRIER.findall(text), 1):
            nth = seen.get(barrier, 0)
            seen[barrier] = nth + 1
            found.append(Mutation(f"barrier {number} of {name} left out", name, barrier, "", nth))
    return found


def positions(text: str, part: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(part), text)]


def switched(mutation: Mutation, number: int, inside: str) -> str:
    """What stands in the place of the text: it, or the mistake."""
    if not mutation.old.endswith(";"):
        return f"(MUTANT({number}) ? ({mutation.new}) : ({inside}))"
    if not mutation.new:
        return f"if (!MUTANT({number})) {inside}"
    return f"if (MUTANT({number})) {{ {mutation.new} }} else {{ {inside} }}"


class Edit(NamedTuple):
    start: int
    end: int
    number: int


def apply_all(text: str, file: str, mutations: list[Mutation]) -> str:
    """One file with all its mistakes. Where two overlap, one contains the other."""
    edits = []
    for number, mutation in enumerate(mutations, 1):
        if mutation.file != file:
            continue
        found = positions(text, mutation.old)
        if len(found) <= mutation.nth:
            raise ListError(f"{file} has no {mutation.old!r} for {mutation.name!r}")
        start = found[mutation.nth]
        edits.append(Edit(start, start + len(mutation.old), number))
    edits.sort(key=lambda edit: (-edit.start, edit.end))  # inner ones first
    while edits:
        start, end, number = edits.pop(0)
        new = switched(mutations[number - 1], number, text[start:end])
        grown = len(new) - (end - start)
        text = text[:start] + new + text[end:]
        edits = [e._replace(end=e.end + grown) if e.end >= end else e for e in edits]
    return text


def main() -> None:
    kernels, output = Path(sys.argv[1]), Path(sys.argv[2])
    files = {path.name: path.read_text() for path in sorted(kernels.glob("*.h"))}
    mutations = barriers(files) + MUTATIONS + GRADIENT_MUTATIONS
    target = output / "sdpa" / "metal" / "kernels"
    target.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (target / name).write_text(apply_all(text, name, mutations))
    names = "".join(f'{{"{m.name}", "{m.file}", "{m.witness}"}},\n' for m in mutations)
    (output / "mutant_names.inc").write_text(names)


if __name__ == "__main__":
    main()
