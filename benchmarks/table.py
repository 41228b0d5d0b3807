# SPDX-License-Identifier: MIT
"""Times our CPU kernels against torch, case by case, and writes benchmarks/results.

    python benchmarks/table.py                                  the whole table
    python benchmarks/table.py --case causal --threads 1        a look; writes nothing
    python benchmarks/table.py --suite realistic --write        a part, added to today's file
    python benchmarks/table.py --backend auto --suite short     is the choice ever the slower one?

Every row is a ratio of interleaved pairs and a share of a peak measured just before it. The last
lines say which rows are slower than torch by more than 3 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import flex
import measurement
import result_file
import torch
from measurement import Budget, Setting

from mps_sdpa import _core
from mps_sdpa.harness import calls, cases, environment
from mps_sdpa.harness.cases import Case
from mps_sdpa.harness.data import make_inputs
from mps_sdpa.harness.memory import peak_bytes

SUITES = ["speed", "realistic", "models", "short"]
RESULTS = Path(__file__).parent / "results"
_LONG = Case("L32768", "", "float32", 1, 1, 1, 32768, 32768, 64, 64, text="fp32 H1 D64 L32768")
_SMALLEST = "fp32 H1 D8 L4"
_TWICE = "fp32 D64 L2048"  # is timed with AVX2 as well


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    parser.add_argument("--limit", type=int, help="only the first so many cases")
    parser.add_argument("--suite", action="append", choices=SUITES, help="default: the first two")
    parser.add_argument("--threads", help="thread counts, as 1,2; default: one and all")
    parser.add_argument(
        "--pass", dest="which", action="append", choices=measurement.PASSES, help="only this pass"
    )
    parser.add_argument("--baseline", choices=["torch", "composite", "flex"])
    parser.add_argument("--backend", default="cpu", help="cpu, or auto for what users get")
    parser.add_argument("--pairs", type=int, help="pairs a row; default: what fits three seconds")
    parser.add_argument("--write", action="store_true", help="keep a part of the table, too")
    parser.add_argument("--no-memory", action="store_true", help="leave out L = 32768")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder to write to")
    return parser.parse_args()


def settings(case: Case, threads: int, backend: str) -> Iterator[Setting]:
    """The rows of a case: which passes, which peers, which kernels."""
    passes = ["forward", "backward" if case.suite == "speed" else "train"]
    if case.name == _SMALLEST:
        passes = ["forward", "train"]
    if case.q_len == 1 and case.suite == "speed":
        passes = ["forward"]
    for which in passes:
        stock = "torch" if calls.expressible(case) else "composite"
        plain = Setting(which, threads, stock, backend)
        yield plain
        if which == "forward" and flex.can_express(case):
            yield dataclasses.replace(plain, baseline="flex")
        if case.name == _TWICE and _has("avx2"):
            yield dataclasses.replace(plain, instruction_set="avx2")


def _has(instruction_set: str) -> bool:
    return (instruction_set, True) in _core.instruction_sets()


def chosen_rows(options: argparse.Namespace) -> list[tuple[Case, Setting]]:
    """The cases of the suite "speed" run on every number of threads asked for, others on all."""
    names = options.suite or SUITES[:2]
    every = [case for name in names for case in cases.suite(name)]
    wanted = [c for c in every if not options.case or any(part in c.name for part in options.case)]
    threads = [int(n) for n in options.threads.split(",")] if options.threads else _thread_counts()
    rows = [
        (case, setting)
        for case in wanted[: options.limit]
        for count in (threads if case.suite == "speed" else threads[-1:])
        for setting in settings(case, count, options.backend)
    ]
    return [
        (case, setting)
        for case, setting in rows
        if (not options.which or setting.which in options.which)
        and (options.baseline is None or setting.baseline == options.baseline)
    ]


def _thread_counts() -> list[int]:
    return sorted({1, len(os.sched_getaffinity(0))})


def long_memory() -> list[result_file.Row]:
    """How far resident memory rises over a forward and backward pass of 32 768 queries."""
    found = []
    for backend in ("cpu", "stock"):
        inputs = make_inputs(_LONG)
        inputs.require_grad()
        step = calls.train_call(calls.forward_call(_LONG, inputs, backend), inputs)
        found.append(
            {
                "text": f"{_LONG.text} forward and backward",
                "backend": "ours" if backend == "cpu" else "torch",
                "bytes": peak_bytes(step),
            }
        )
    return found


def measured(case: Case, setting: Setting, budget: Budget) -> result_file.Row:
    """A row; one that is slower than torch must be seen twice, as in calibration."""
    row = measurement.measure(case, setting, budget)
    if not result_file.is_slower(row):
        return row
    first, row = row, measurement.measure(case, setting, budget)
    row["notes"].append(f"measured again; first {first['ratio']['value']:.2f}")
    return row


def main() -> None:
    options = parse()
    machine = {**environment.describe_machine(), "notes": environment.load_notes()}
    path = result_file.path_for(options.out, machine)
    for note in machine["notes"]:
        print(f"note: {note}")
    budget, rows = Budget(pairs=options.pairs), []
    for case, setting in chosen_rows(options):
        rows.append(measured(case, setting, budget))
        print(result_file.line(rows[-1]), flush=True)
        if options.write:
            result_file.write(path, result_file.merge(path, machine, rows[-1:], []))
    parts = (options.case, options.limit, options.which, options.baseline, options.suite)
    is_whole = not any(parts)
    memory = long_memory() if is_whole and not options.no_memory else []
    document = result_file.merge(path, machine, rows, memory)
    if rows:
        slowest = min(rows, key=lambda row: row["ratio"]["value"])
        print(f"the least ratio: {result_file.line(slowest)}")
    shown = document if is_whole else {**document, "rows": rows, "memory": memory}
    for line in result_file.summary(shown):
        print(line)
    if is_whole or options.write:
        result_file.write(path, document)
        print(f"wrote {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
