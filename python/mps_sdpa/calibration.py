# SPDX-License-Identifier: MIT
"""Measures, on this machine, from which amount of work on each back end beats torch.

On the CPU the built-in thresholds serve, which send everything to us, and nothing is timed unless
`calibrate` is called. What it finds is kept and serves later processes too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import torch

from mps_sdpa import engine, threshold_cache
from mps_sdpa.backends import available_backends
from mps_sdpa.crossovers import DTYPES, PASSES, Point, Thresholds, crossovers
from mps_sdpa.environment import environment

__all__ = ["calibrate", "calibration_summary", "use_cached"]

_log = logging.getLogger("mps_sdpa.calibration")

_HEADS = 4
_LENGTHS = {"cpu": (16, 48, 128, 256), "mps": (64, 256, 512, 1024, 2048)}
_DIMS = (64, 128)
_MEASURED = ("float32", "bfloat16", "float16")
_BUDGET_SECONDS = {"cpu": 3.0, "mps": 10.0}

_BUILT_IN: Thresholds = {which: dict.fromkeys(DTYPES, 0.0) for which in PASSES}

#: Above this share of the CPU that others used, a measurement says more of them than of us.
_DISTURBED = 0.25

_points: dict[str, list[Point]] = {}
_disturbed: dict[str, str] = {}


def calibrate(device: str | torch.device | None = None, force: bool = False) -> Thresholds:
    """The least work, by pass and dtype, from which on our back end is used; 0 is always.

    Measures the real path in interleaved pairs within three seconds on a CPU, shows progress on a
    terminal, and keeps the result. Without `force` a result that is kept already is used. What was
    measured while other programs were busy is dropped, and the built-in thresholds are returned.
    """
    kind = torch.device(device if device is not None else _default_device()).type
    kept = None if force or environment().force_calibrate else threshold_cache.read(kind)
    if kept is not None:
        _use(kind, kept)
        return kept
    thresholds, others = _measured(kind)
    if others > _DISTURBED:
        _disturbed[kind] = f"Other programs used {others:.0%} of the CPU, so nothing was kept. "
        _log.warning("calibration: %s", _disturbed[kind])
        return _BUILT_IN
    _disturbed.pop(kind, None)
    threshold_cache.write(kind, thresholds)
    _use(kind, thresholds)
    return thresholds


def use_cached(device: str) -> None:
    """Takes up kept thresholds, if there are any; measures nothing."""
    if environment().skip_calibration:
        return
    if (thresholds := threshold_cache.read(device)) is not None:
        _use(device, thresholds)


def measured_points(device: str) -> list[Point]:
    """What this process has measured, for reports."""
    return list(_points.get(device, []))


def calibration_summary(device: str) -> str:
    """What calibration knows about a device, in one sentence."""
    if environment().skip_calibration:
        return "Skipped by MPS_SDPA_SKIP_CALIBRATION; the built-in crossovers serve."
    thresholds = threshold_cache.read(device)
    if thresholds is None:
        return (
            f"{_disturbed.get(device, '')}None is kept for {device}; the built-in crossovers "
            "serve: every size is ours."
        )
    parts = [
        f"{dtype} {which} {in_words(thresholds[which][dtype])}"
        for which in PASSES
        for dtype in _MEASURED
    ]
    return "Ours from this work on: " + ", ".join(parts) + "."


def in_words(work: float) -> str:
    if work == 0:
        return "always"
    return "never" if work == float("inf") else f"{work:.2g}"


def _default_device() -> str:
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _use(device: str, thresholds: Thresholds) -> None:
    if device == "cpu":
        engine.set_thresholds([[thresholds[which][dtype] for dtype in DTYPES] for which in PASSES])


def _measured(device: str) -> tuple[Thresholds, float]:
    """Thresholds, and the share of the CPU that other programs used meanwhile."""
    from mps_sdpa.harness.environment import Watch

    name = next((name for name in available_backends() if _runs_on(name, device)), None)
    if name is None:
        raise RuntimeError(f"no back end can be used on device {device!r}, so none is calibrated")
    with Watch() as watch:
        points = list(_measure(name, device))
    _points[device] = points
    level = logging.INFO if environment().log_calibration else logging.DEBUG
    for point in points:
        _log.log(
            level, "%s %s work %.3g: %.2f", point.which, point.dtype, point.work, point.speedup
        )
    return crossovers(points), watch.others


def _runs_on(name: str, device: str) -> bool:
    return name == "cpu" if device == "cpu" else name not in ("cpu", "stock", "metal_proto")


def _measure(backend: str, device: str) -> Iterator[Point]:
    """Every point of the grid, small ones first, until the budget is spent."""
    from mps_sdpa.harness.progress import track

    grid = [
        (length, dim, dtype, which)
        for length in _LENGTHS[device]
        for dim in _DIMS
        for dtype in _MEASURED
        for which in PASSES
    ]
    budget = _BUDGET_SECONDS[device]
    deadline = time.monotonic() + budget
    for length, dim, dtype, which in track(grid, lambda _: f"calibrating {backend}"):
        if time.monotonic() > deadline:
            _log.info(
                "calibration stopped at length %d: its budget of %g s is spent", length, budget
            )
            return
        share = budget / len(grid)
        point = _time(backend, device, length, dim, dtype, which, share)
        if point.is_slower:  # must be seen twice
            again = _time(backend, device, length, dim, dtype, which, share)
            point = max(point, again, key=lambda measured: measured.speedup)
        yield point


def _time(
    backend: str, device: str, length: int, dim: int, dtype: str, which: str, budget: float
) -> Point:
    from mps_sdpa.harness import calls, timing
    from mps_sdpa.harness.benchmark import no_grad
    from mps_sdpa.harness.cases import Case
    from mps_sdpa.harness.data import make_inputs
    from mps_sdpa.harness.peaks import synchronizer

    case = Case("", "", dtype, 1, _HEADS, _HEADS, length, length, dim, dim)
    inputs = make_inputs(case, device=device)
    forwards = [calls.forward_call(case, inputs, name) for name in (backend, "stock")]
    runs: list[timing.Call]
    if which == "train":
        inputs.require_grad()
        runs = [calls.train_call(forward, inputs) for forward in forwards]
    else:
        runs = [no_grad(forward) for forward in forwards]
    timed = timing.paired(
        *runs, budget=budget / 2, warm_up_limit=budget / 4, synchronize=synchronizer(device)
    )
    found = timed.speedup()
    return Point(which, dtype, float(_HEADS * length * length * dim), found.value, found.high)
