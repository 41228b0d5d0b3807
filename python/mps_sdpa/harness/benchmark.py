# SPDX-License-Identifier: MIT
"""Times cases on two back ends and keeps everything a report shows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

import mps_sdpa
from mps_sdpa import calibration, threshold_cache
from mps_sdpa.harness import calls, reference
from mps_sdpa.harness.cases import SHORT_NAMES, Case
from mps_sdpa.harness.data import Inputs, make_inputs
from mps_sdpa.harness.environment import Watch
from mps_sdpa.harness.errors import compare, tolerance
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
    accuracy: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Cold:
    """What a fresh process waits for before its first result."""

    import_ms: float
    first_call_ms: float

    @property
    def total_ms(self) -> float:
        return self.import_ms + self.first_call_ms


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
    candidate_error: float | None = None
    baseline_error: float | None = None
    cold_ms: float | None = None
    cold: dict[str, Cold] = field(default_factory=dict)
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
    synchronize = synchronizer(plan.device)
    with Watch() as watch:
        timed = paired(
            *runs, pairs=plan.pairs, synchronize=synchronize, between=watch.look, seed=plan.seed
        )
    candidate_bytes, baseline_bytes = (peak_bytes(run, plan.device) for run in runs)
    row = _row(case, plan, peaks, timed, candidate_bytes, baseline_bytes)
    row.notes += watch.notes()
    if plan.cold:
        sides = (("candidate", plan.candidate), ("baseline", plan.baseline))
        row.cold = {side: cold_start(case, plan, name) for side, name in sides}
        row.cold_ms = row.cold["candidate"].total_ms
    if plan.accuracy and case.dropout == 0:
        row.candidate_error, row.baseline_error = _errors(case, inputs, forwards)
    return row


def _errors(case: Case, inputs: Inputs, forwards: list[calls.Forward]) -> tuple[float, ...]:
    """The largest difference of each output from double precision."""
    expected = reference.forward(case, inputs).out
    allowed = tolerance(case.torch_dtype)
    outputs = (no_grad(forward)() for forward in forwards)
    return tuple(compare("out", out, expected, allowed).max_abs_err for out in outputs)


def refusal(case: Case, plan: Plan) -> str | None:
    """Why the candidate or the baseline cannot run a case."""
    inputs = make_inputs(case, seed=plan.seed, device=plan.device)
    for name in (plan.candidate, plan.baseline):
        if name == "stock":
            continue
        if reason := calls.refusal(case, inputs, name, gradients=plan.train):
            return f"{name}: {reason}"
    return None


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
        notes=timed.notes(),
    )


_COLD = """
import sys, time
start = time.perf_counter()
import torch
if sys.argv[3] != "stock":
    import mps_sdpa
imported = time.perf_counter()
from mps_sdpa.harness import benchmark
print((imported - start) * 1e3, benchmark.first_call(*sys.argv[1:]))
"""


def cold_start(case: Case, plan: Plan, backend: str) -> Cold:
    """Import and first call in a fresh process."""
    words = [case.suite, case.name, backend, plan.device, "train" if plan.train else "fwd"]
    done = subprocess.run(
        [sys.executable, "-c", _COLD, *words], capture_output=True, text=True, check=True
    )
    import_ms, first_call_ms = done.stdout.split()[-2:]
    return Cold(float(import_ms), float(first_call_ms))


def first_call(suite: str, name: str, backend: str, device: str, which: str) -> float:
    """What the fresh process of `cold_start` does: its milliseconds."""
    from mps_sdpa.harness.cases import suite as cases

    case = next(case for case in cases(suite) if case.name == name)
    inputs = make_inputs(case, device=device)
    call: calls.Forward | Callable[[], None] = calls.forward_call(case, inputs, backend)
    if which == "train":
        inputs.require_grad()
        call = calls.train_call(calls.forward_call(case, inputs, backend), inputs)
    start = time.perf_counter()
    call()
    synchronizer(device)()
    return (time.perf_counter() - start) * 1e3


def overall(rows: list[Row]) -> Interval:
    """The weighted geometric mean of candidate over baseline: below 1 the candidate is faster."""
    ratios: list[Floats] = [np.asarray(row.ratios) for row in rows]
    return weighted_geomean(ratios, [row.weight for row in rows])


def document(
    rows: list[Row],
    plan: Plan,
    suite: str,
    environment: dict[str, Any],
    peaks: Peaks,
    refused: dict[str, str],
) -> dict[str, Any]:
    """The whole result as JSON keeps it; a report is drawn from this alone."""
    mean = overall(rows)
    return {
        "schema": 2,
        "suite": suite,
        "plan": asdict(plan),
        "environment": environment,
        "peaks": asdict(peaks),
        "n_cases": len(rows),
        "weighted_geomean_candidate_over_baseline": mean.value,
        "weighted_geomean_interval": [mean.low, mean.high],
        "rows": [row.as_dict() for row in rows],
        "refused": {**mps_sdpa.backend_status()["unavailable"], **refused},
        "calibration": _calibration(plan.device),
    }


def _calibration(device: str) -> dict[str, Any]:
    """What the choice knows: ladders in use, and the measurements that they come from."""
    in_use = calibration.take_up(device)
    return {
        "summary": calibration.calibration_summary(device),
        "points": [] if in_use is None else [*map(asdict, threshold_cache.read_points(device))],
        "ladders": in_use or {},
    }


def conclusion(document: dict[str, Any]) -> str:
    """The weighted mean in words; no winner while its interval spans 1."""
    low, high = document["weighted_geomean_interval"]
    mean = document["weighted_geomean_candidate_over_baseline"]
    plan = document["plan"]
    text = (
        f"weighted geometric mean of the speed-up: {1 / mean:.2f} [{1 / high:.2f}, {1 / low:.2f}]"
    )
    if low <= 1 <= high:
        return f"{text}; the interval spans 1, so neither is called faster"
    faster = plan["candidate"] if high < 1 else plan["baseline"]
    return f"{text}; {faster} is faster"
