# SPDX-License-Identifier: MIT
"""docs/metal-counts.md: what our Metal kernels do beside MLX's and torch's, counted anew.

The test fails if the page is out of date, if ours do more than theirs in a column without a reason
in REASONS, if a reason applies to nothing, or if a causal or backward pass costs too much. Where
the kernels of MLX or torch cannot be had, their lines of the page are taken as they are.

usage: counts_table_test.py [--write] PAGE BUILD_FOLDER COUNT_KERNELS LIBRARY...
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "metal_sim"))

from third_party import build_targets, copy_kernels, headers

COLUMNS = (
    "matrix products",
    "exponentials",
    "shuffles",
    "SIMD barriers",
    "barriers",
    "device read",
    "device written",
    "threadgroup read",
    "threadgroup written",
    "threadgroup memory",
)
PROJECTS = {"mlx": "MLX", "torch": "torch"}
BACKWARD = ", backward"
CAUSAL = ", causal"
CAUSAL_LIMIT = 0.57  # the tiles on the diagonal are half hidden, and computed whole
BACKWARD_LIMIT = 3.6  # seven products against two, and nothing else


class Row(NamedTuple):
    problem: str
    kernel: str
    counts: tuple[int, ...]

    def count(self, column: str) -> int:
        return self.counts[COLUMNS.index(column)]


class Reason(NamedTuple):
    kernel: str  # exactly
    problem: str  # part of it
    column: str
    text: str

    def covers(self, row: Row, column: str) -> bool:
        return (self.kernel, self.column) == (row.kernel, column) and self.problem in row.problem


REASONS = (
    Reason(
        "ours, direct",
        "",
        "device read",
        "From M3 on no threadgroup memory is used, so K and V are named once for 8 queries instead "
        "of once for 32; the four SIMD groups of a threadgroup read the same lines, which a cache "
        "serves. Reads of both kinds of memory together are fewer than theirs.",
    ),
    Reason(
        "ours, staged",
        "D 128",
        "threadgroup memory",
        "A tile holds 32 keys where theirs holds 16, and K and V at once: a quarter of the "
        "barriers. It is chosen so that a core holds several threadgroups nevertheless.",
    ),
    Reason(
        "ours",
        "one query",
        "matrix products",
        "The rows of all heads that share keys are multiplied as a matrix of eight, whether or not "
        "eight exist. Theirs multiply and add in vectors, which is not counted here. One query "
        "waits for memory either way.",
    ),
    Reason(
        "ours",
        "one query",
        "device written",
        "Parts of the keys go to different SIMD groups, as many as fill the GPU, and leave their "
        "results in float32 for a second launch. One threadgroup a head, or 16-bit parts, would "
        "write less; K and V, which are read, are twenty times as much.",
    ),
    Reason(
        "ours",
        "1024 keys each",
        "device read",
        "The second launch reads those parts: 3 % of what K and V are, which nobody shares here.",
    ),
)


def parse(text: str) -> list[Row]:
    """What count_kernels prints."""
    rows = []
    for line in text.splitlines():
        problem, kernel, *counts = line.split("\t")
        rows.append(Row(problem, kernel, tuple(map(int, counts))))
    return rows


def parse_page(page: str) -> list[Row]:
    """The lines of other projects in the page."""
    rows, problem = [], ""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith("**"):
            problem = cells[0].strip("*")
        elif line.startswith("| ") and cells[0].split()[0] in PROJECTS.values():
            rows.append(Row(problem, cells[0], tuple(int(cell.split()[0]) for cell in cells[1:])))
    return rows


def is_ours(row: Row) -> bool:
    return row.kernel.startswith("ours")


def is_backward(row: Row) -> bool:
    return row.kernel.endswith(BACKWARD)


def problems_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.problem for row in rows))


def forward_rows(rows: list[Row], problem: str) -> list[Row]:
    return [row for row in rows if row.problem == problem and not is_backward(row)]


def higher_columns(row: Row, rows: list[Row]) -> list[str]:
    """Where one of ours does more than the least of the others on the same problem."""
    rivals = [other for other in forward_rows(rows, row.problem) if not is_ours(other)]
    if not is_ours(row) or not rivals:
        return []
    return [c for c in COLUMNS if row.count(c) > min(rival.count(c) for rival in rivals)]


def reason_for(row: Row, column: str) -> Reason | None:
    return next((reason for reason in REASONS if reason.covers(row, column)), None)


def reads(row: Row) -> int:
    return row.count("device read") + row.count("threadgroup read")


def complaints_of_columns(rows: list[Row]) -> list[str]:
    """Columns in which ours do more, without a reason, and reasons that apply to nothing."""
    found, used = [], set()
    for row in rows:
        if is_backward(row):
            continue
        for column in higher_columns(row, rows):
            reason = reason_for(row, column)
            used.add(reason)
            if reason is None:
                found.append(f"{row.problem}: {row.kernel} does more {column} without a reason")
        if row.kernel == "ours, direct":
            rivals = [rival for rival in forward_rows(rows, row.problem) if not is_ours(rival)]
            more = [rival for rival in rivals if reads(row) >= reads(rival)]
            found += [f"{row.problem}: {row.kernel} reads no less than {r.kernel}" for r in more]
    found += [f"no column needs the reason '{r.text[:60]}...'" for r in REASONS if r not in used]
    return found


class Ratio(NamedTuple):
    problem: str
    kernel: str
    name: str
    value: float
    limit: float


def ratios(rows: list[Row]) -> list[Ratio]:
    """Matrix products of backward passes and causal problems, by those they are held against."""
    products = {(row.problem, row.kernel): row.count("matrix products") for row in rows}
    found = []
    for (problem, kernel), count in products.items():
        if kernel.endswith(BACKWARD):
            forward = products[problem, kernel.removesuffix(BACKWARD)]
            found.append(Ratio(problem, kernel, "of forward", count / forward, BACKWARD_LIMIT))
        dense = products.get((problem.removesuffix(CAUSAL), kernel))
        if problem.endswith(CAUSAL) and kernel.startswith("ours") and dense:
            found.append(Ratio(problem, kernel, "of dense", count / dense, CAUSAL_LIMIT))
    return found


def complaints_of_ratios(rows: list[Row]) -> list[str]:
    return [
        f"{r.problem}: {r.kernel} has {r.value:.2f} {r.name} products, over {r.limit}"
        for r in ratios(rows)
        if r.value > r.limit
    ]


def table_line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(heading: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [
        table_line(list(heading)),
        "|---" + "|---:" * (len(heading) - 1) + "|",
        *map(table_line, rows),
    ]


def cells_of(row: Row, rows: list[Row]) -> list[str]:
    higher = higher_columns(row, rows)
    cells = [row.kernel]
    for column in COLUMNS:
        reason = reason_for(row, column) if column in higher else None
        mark = f" ({REASONS.index(reason) + 1})" if reason else ""
        cells.append(f"{row.count(column)}{mark}")
    return cells


INTRODUCTION = """\
# Metal: what the kernels do, counted

Our kernels beside those of MLX (`steel_attention`, `sdpa_vector`) and torch (`prefill_attention`,
`sdpa_vector`), all run in the simulator on the same problems, with the grids that each project
chooses on a GPU without suffix (M1, M4). All give the oracle's result. Nothing was timed, and
nothing ran on an Apple device: counts stand in for a clock that we do not have.

*Matrix products* are of 8 x 8 x 8, one for a SIMD group; *exponentials* one for a lane; *shuffles*
one for a SIMD group, a sum over its lanes counting as five; *SIMD barriers* of a SIMD group,
*barriers* of a threadgroup. Memory is in bytes: device and threadgroup memory as loads and stores
name them, without any cache, and the threadgroup memory that one threadgroup holds. *Staged* is the
form for M1 and M2, *direct* the one from M3 on. The problems with 256 queries are one head of many,
or four that share keys; no kernel writes the log-sum-exp.

Where ours do more than the least of the others, a number in brackets names the reason at the end.

This page is generated and `counts_table_test` fails where it is out of date;
`cmake --build --preset dev --target write_counts` writes it anew.
"""


def render(rows: list[Row]) -> str:
    parts = [INTRODUCTION, "## Forward\n"]
    listed = []
    for problem in problems_of(rows):
        listed.append([f"**{problem}**", *[""] * len(COLUMNS)])
        listed += [cells_of(row, rows) for row in forward_rows(rows, problem)]
    parts.append("\n".join(table(("kernel", *COLUMNS), listed)) + "\n")
    parts.append("## Backward\n\nMLX and torch have no such kernels.\n")
    listed = [
        [f"{row.problem}: {row.kernel.removesuffix(BACKWARD)}", *map(str, row.counts)]
        for row in rows
        if is_backward(row)
    ]
    parts.append("\n".join(table(("problem", *COLUMNS), listed)) + "\n")
    parts.append(
        "## Matrix products in proportion\n\n"
        "Causal problems have nearly half of the dense ones' pairs. A backward pass has seven\n"
        "products where the forward pass has two; dQ and dK, dV are two kernels, so that neither\n"
        "needs atomics.\n"
    )
    listed = [
        [f"{r.problem}: {r.kernel}", r.name, f"{r.value:.2f}", f"{r.limit}"] for r in ratios(rows)
    ]
    parts.append("\n".join(table(("problem", "share", "is", "at most"), listed)) + "\n")
    reasons = "\n".join(f"{n}. {reason.text}" for n, reason in enumerate(REASONS, 1))
    parts.append(f"## Reasons\n\n{reasons}\n")
    return "\n".join(parts)


def libraries_of(project: str, libraries: list[Path]) -> list[Path]:
    return [library for library in libraries if re.match(f"lib{project}_", library.name)]


def compile_kernels(project: str, build: Path, libraries: list[Path]) -> bool:
    """False, with a loud line, if the project's sources cannot be had."""
    source = headers(project, build)
    if source is None:
        return False
    copy_kernels(project, source, build)
    build_targets(build, [library.stem.removeprefix("lib") for library in libraries])
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("page", type=Path)
    parser.add_argument("build", type=Path)
    parser.add_argument("program")
    parser.add_argument("libraries", nargs="+", type=Path)
    options = parser.parse_args()
    page = options.page.read_text() if options.page.exists() else ""

    # A loud line makes this test count as skipped, so it comes last, and only if nothing failed.
    loud = io.StringIO()
    usable: list[Path] = []
    missing = []
    for project, name in PROJECTS.items():
        libraries = libraries_of(project, options.libraries)
        with contextlib.redirect_stdout(loud):
            is_there = compile_kernels(project, options.build, libraries)
        usable += libraries if is_there else []
        missing += [] if is_there else [name]
    counted = subprocess.run(
        [options.program, *map(str, usable)], stdout=subprocess.PIPE, text=True, check=True
    )
    rows = parse(counted.stdout)
    rows += [row for row in parse_page(page) if row.kernel.split()[0] in missing]
    order = problems_of(rows)
    rows.sort(key=lambda row: order.index(row.problem))

    complaints = complaints_of_columns(rows) + complaints_of_ratios(rows)
    text = render(rows)
    if options.write:
        options.page.write_text(text)
    elif text != page:
        complaints.append(
            f"{options.page} is out of date: cmake --build --preset dev --target write_counts"
        )
    print("\n".join(complaints) if complaints else loud.getvalue(), end="\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
