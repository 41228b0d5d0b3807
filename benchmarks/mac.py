# SPDX-License-Identifier: MIT
"""On a Mac: checks and times the GPU back ends, and writes one file that is worth sending back.

    python benchmarks/mac.py                a few minutes; benchmarks/results/CHIP-DATE.json
    python benchmarks/mac.py --limit 20     fewer cases

The file has what only a Mac can tell: whether the kernels compile and are right, how fast they are
beside torch's own attention and beside our estimates, and how the system's methods differ from the
ones that the library declares. It holds no names, no paths, and nothing of the user's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

import mps_sdpa
from mps_sdpa import cli_options
from mps_sdpa.harness import benchmark, cases, correctness, environment, peaks, progress, self_check

RESULTS = Path(__file__).parent / "results"
GPU_BACKENDS = ("metal", "mpsgraph_zc", "mpsgraph", "metal_proto")
_CHECKED, _TIMED = 150, 10


def check(backend: str, device: str, limit: int) -> dict[str, Any]:
    """Cases of all kinds against double precision: the counts, and every case that failed."""
    suite = [c for c in cases.suite("conformance") if not c.layout.startswith("huge")]
    chosen = suite[:: max(1, len(suite) // limit)]
    outcomes = [
        correctness.check(case, backend, device=device)
        for case in progress.track(chosen, lambda case: f"{backend}: {case.name}")
    ]
    failed = [asdict(outcome) for outcome in outcomes if not outcome.passed]
    return {**correctness.summary(outcomes), "failed": failed}


def time(backend: str, device: str, limit: int, train: bool) -> dict[str, Any]:
    """The realistic suite against torch's own function."""
    plan = benchmark.Plan(candidate=backend, device=device, train=train)
    limits = peaks.measure_peaks(device)
    rows, refused = [], {}
    for case in progress.track(cases.suite("realistic", limit=limit), lambda case: case.name):
        if reason := benchmark.refusal(case, plan):
            refused[case.name] = reason
        else:
            rows.append(benchmark.measure(case, plan, limits))
    if not rows:
        return {"refused": refused}
    return benchmark.document(
        rows, plan, "realistic", environment.describe_machine(), limits, refused
    )


def attempt(job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a job finds, or how it failed: that is what the file is for, and the others go on."""
    try:
        return job()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def collect(device: str, backends: Iterable[str], checked: int, timed: int) -> dict[str, Any]:
    """Everything of the file."""
    return {
        "self_test": self_check.run(device),
        "back_ends": {
            name: {
                "correctness": attempt(partial(check, name, device, checked)),
                "forward": attempt(partial(time, name, device, timed, train=False)),
                "train": attempt(partial(time, name, device, timed, train=True)),
            }
            for name in backends
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--limit", type=int, default=_CHECKED, help="cases to check a back end with"
    )
    parser.add_argument("--timed", type=int, default=_TIMED, help="cases to time")
    parser.add_argument("--out", type=Path, help="the file to write")
    options = parser.parse_args()
    if not torch.backends.mps.is_available():
        print("Error: torch finds no Apple GPU here; this is for a Mac.", file=sys.stderr)
        return 2
    available = [name for name in GPU_BACKENDS if name in mps_sdpa.available_backends()]
    found = collect("mps", available, options.limit, options.timed)
    machine = found["self_test"]["env"]
    chip = machine["chip"].replace(" ", "-").lower()
    out = options.out or RESULTS / f"{chip}-{machine['date']}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(cli_options.finite(found), indent=1, default=str), encoding="utf-8")
    print(f"{out}: please send this file to the project")
    return 0 if found["self_test"]["status"] == "pass" else 1


if __name__ == "__main__":
    sys.exit(main())
