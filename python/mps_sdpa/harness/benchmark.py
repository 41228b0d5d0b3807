# SPDX-License-Identifier: MIT
"""Times cases on two back ends and keeps everything a report shows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from mps_sdpa.harness import calls
from mps_sdpa.harness.cases import SHORT_NAMES, Case
from mps_sdpa.harness.data import make_inputs
from mps_sdpa.harness.memory import peak_bytes
from mps_sdpa.harness.peaks import Peaks, synchronizer
from mps_sdpa.harness.timing import Floats, Interval, Paired, paired, weighted_geomean


@dataclass(frozen=True, slots=True)
class Plan:
    """What to time: candidate against baseline, on which device and pass."""

    candidate: str = "auto"
    baseline: str = "stock"
    device: str = "cpu"
    train: bool = False
    pairs: int | None = None
    cold: bool = False
    seed: int = 0


@dataclass(slots=True)
class Row:
    """One case's measurement."""

    case_id: str
    text: str
    dtype: str
    weight: float
    candidate_ms: float
    baseline_ms: float
    speedup: Interval
    ratios: list[float]
    peak_share: float
    baseline_peak_share: float
    gflops: float
    intensity: float
    candidate_bytes: int | None
    baseline_bytes: int | None
    cold_ms: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Who is faster; nobody while the interval spans 1."""
        if not self.speedup.is_conclusive:
            return "undecided"
        return "faster" if self.speedup.value > 1 else "slower"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def measure(case: Case, plan: Plan, peaks: Peaks) -> Row:
    """Times one case in pairs, then measures both peaks of memory in calls of their own."""
    inputs = make_inputs(case, seed=plan.seed, device=plan.device)
    if plan.train:
        inputs.require_grad()
    forwards = [calls.forward_call(case, inputs, name) for name in (plan.candidate, plan.baseline)]
    runs = [calls.train_call(f, inputs) if plan.train else no_grad(f) for f in forwards]
    timed = paired(*runs, pairs=plan.pairs, synchronize=synchronizer(plan.device), seed=plan.seed)
    candidate_bytes, baseline_bytes = (peak_bytes(run, plan.device) for run in runs)
    return _row(case, plan, peaks, timed, candidate_bytes, baseline_bytes)


def no_grad(forward: calls.Forward) -> calls.Forward:
    """The call without autograd, as inference makes it."""

    def call() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    return call


def _row(
    case: Case,
    plan: Plan,
    peaks: Peaks,
    timed: Paired,
    candidate_bytes: int | None,
    baseline_bytes: int | None,
) -> Row:
    flops = case.flops(backward=plan.train)
    moved = case.bytes_moved() * (3 if plan.train else 1)
    candidate, baseline = float(np.median(timed.candidate)), float(np.median(timed.baseline))
    return Row(
        case_id=case.name,
        text=case.text,
        dtype=SHORT_NAMES[case.dtype],
        weight=case.weight,
        candidate_ms=candidate * 1e3,
        baseline_ms=baseline * 1e3,
        speedup=timed.speedup(),
        ratios=[float(ratio) for ratio in timed.ratios],
        peak_share=peaks.share(flops, moved, case.dtype, candidate),
        baseline_peak_share=peaks.share(flops, moved, case.dtype, baseline),
        gflops=flops / candidate / 1e9,
        intensity=flops / moved,
        candidate_bytes=candidate_bytes,
        baseline_bytes=baseline_bytes,
        cold_ms=cold_ms(case, plan) if plan.cold else None,
        notes=timed.notes(),
    )


_COLD = """
import sys, time
start = time.perf_counter()
from mps_sdpa.harness import benchmark
benchmark.first_call(*sys.argv[1:])
print((time.perf_counter() - start) * 1e3)
"""


def cold_ms(case: Case, plan: Plan) -> float:
    """Import and first call in a fresh process."""
    words = [case.suite, case.name, plan.candidate, plan.device, "train" if plan.train else "fwd"]
    done = subprocess.run(
        [sys.executable, "-c", _COLD, *words], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def first_call(suite: str, name: str, backend: str, device: str, which: str) -> None:
    """What the fresh process of `cold_ms` does."""
    from mps_sdpa.harness.cases import suite as cases

    case = next(case for case in cases(suite) if case.name == name)
    inputs = make_inputs(case, device=device)
    if which == "train":
        inputs.require_grad()
        calls.train_call(calls.forward_call(case, inputs, backend), inputs)()
    else:
        calls.forward_call(case, inputs, backend)()
    synchronizer(device)()


def overall(rows: list[Row]) -> Interval:
    """The weighted geometric mean of candidate over baseline: below 1 the candidate is faster."""
    ratios: list[Floats] = [np.asarray(row.ratios) for row in rows]
    return weighted_geomean(ratios, [row.weight for row in rows])


def document(
    rows: list[Row], plan: Plan, suite: str, environment: dict[str, Any], peaks: Peaks
) -> dict[str, Any]:
    """The whole result as JSON keeps it; a report is drawn from this alone."""
    mean = overall(rows)
    return {
        "schema": 1,
        "suite": suite,
        "plan": asdict(plan),
        "environment": environment,
        "peaks": asdict(peaks),
        "n_cases": len(rows),
        "weighted_geomean_candidate_over_baseline": mean.value,
        "weighted_geomean_interval": [mean.low, mean.high],
        "rows": [row.as_dict() for row in rows],
    }
