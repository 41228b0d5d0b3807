# SPDX-License-Identifier: MIT
"""One row of the table: a case and a pass, timed against a baseline in interleaved pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import flex
import numpy as np
import torch

from mps_sdpa import _core
from mps_sdpa.harness import calls, timing
from mps_sdpa.harness.benchmark import no_grad
from mps_sdpa.harness.cases import Case
from mps_sdpa.harness.data import Inputs, make_inputs
from mps_sdpa.harness.peaks import Peaks, measure_peaks

PASSES = ("forward", "backward", "train")


@dataclass(frozen=True, slots=True)
class Setting:
    """How a case is run: which pass, on how many threads, against whom, with which kernels.

    The baseline is torch's own function, its compiled flex_attention, or, for what torch's function
    cannot express, the composite of torch's operators that serves where no back end does.
    """

    which: str
    threads: int
    baseline: str
    backend: str = "cpu"
    instruction_set: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to measure: so many pairs, or as many as fit into so many seconds."""

    pairs: int | None = None
    seconds: float = 3.0


def measure(case: Case, setting: Setting, budget: Budget) -> dict[str, Any]:
    """Both times, their ratio with its spread, and the share of peaks measured just before."""
    torch.set_num_threads(setting.threads)
    _core.set_thread_count(setting.threads)
    _core.set_instruction_set(setting.instruction_set)
    try:
        peaks = _best_peaks(setting)
        inputs = make_inputs(case)
        ours = _call(case, inputs, setting.which, calls.forward_call(case, inputs, setting.backend))
        theirs = _call(case, inputs, setting.which, BASELINES[setting.baseline](case, inputs))
        timed = timing.paired(ours, theirs, pairs=budget.pairs, budget=budget.seconds)
        used = _core.instruction_set()
    finally:
        _core.set_instruction_set("")
    return _row(case, setting, peaks, timed) | {"instruction_set": used}


_seen: dict[tuple[int, str], Peaks] = {}


def _best_peaks(setting: Setting) -> Peaks:
    """The most seen in this run so far: what disturbs a measurement of a peak can only lower it."""
    key = (setting.threads, setting.instruction_set)
    found, before = measure_peaks(), _seen.get(key)
    if before is not None:
        flops = {name: max(rate, before.flops[name]) for name, rate in found.flops.items()}
        found = Peaks(flops, max(found.bandwidth, before.bandwidth))
    _seen[key] = found
    return found


def _stock(case: Case, inputs: Inputs) -> calls.Forward:
    return calls.forward_call(case, inputs, "stock")


#: By name, what makes a baseline's call for a case.
BASELINES: dict[str, Callable[[Case, Inputs], calls.Forward]] = {
    "torch": _stock,
    "composite": _stock,
    "flex": flex.forward_call,
}


def _call(case: Case, inputs: Inputs, which: str, forward: calls.Forward) -> timing.Call:
    if which == "forward":
        return no_grad(forward)
    if which == "train":  # with the gradient of a float mask, which training needs
        inputs.require_grad()
        return calls.train_call(forward, inputs)
    for tensor in (inputs.query, inputs.key, inputs.value):
        tensor.requires_grad_()
    return calls.backward_call(forward, inputs)


def flops(case: Case, which: str) -> float:
    forward = case.flops()
    return {"forward": forward, "backward": 2.5 * forward, "train": 3.5 * forward}[which]


def _row(case: Case, setting: Setting, peaks: Peaks, timed: timing.Paired) -> dict[str, Any]:
    work, moved = flops(case, setting.which), case.bytes_moved()
    decoding = case.q_len == 1
    ours, theirs = _times(timed.candidate), _times(timed.baseline)

    def share(milliseconds: float) -> float:
        return peaks.share(0.0 if decoding else work, moved, case.dtype, milliseconds / 1e3)

    return {
        "suite": case.suite,
        "case": case.name,
        "text": case.text,
        "weight": case.weight,
        **asdict(setting),
        "ours_ms": ours,
        "baseline_ms": theirs,
        "ratio": asdict(timed.speedup()),
        "ratios": [float(ratio) for ratio in timed.ratios],
        "unit": "GB/s" if decoding else "GFLOP/s",
        "rate": (moved if decoding else work) / ours["median"] / 1e6,
        "bound": "read bandwidth" if decoding else f"{case.dtype} multiply-adds",
        "share": {name: share(time) for name, time in ours.items()},
        "baseline_share": {name: share(time) for name, time in theirs.items()},
        "peaks": asdict(peaks),
        "notes": timed.notes(),
    }


def _times(seconds: timing.Floats) -> dict[str, float]:
    return {"best": float(np.min(seconds)) * 1e3, "median": float(np.median(seconds)) * 1e3}
