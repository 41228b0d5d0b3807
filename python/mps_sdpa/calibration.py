# SPDX-License-Identifier: MIT
"""Measures, on this machine, from which amount of work on each back end beats torch.

On the CPU the built-in thresholds serve, which send everything to us, and nothing is timed unless
`calibrate` is called. On an Apple GPU the first call that a threshold may decide has them measured.
What is found is kept and serves later processes too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import torch

from mps_sdpa import engine, stats, threshold_cache
from mps_sdpa.backends import available_backends
from mps_sdpa.crossovers import DIMS, DTYPES, PASSES, Point, Thresholds, crossovers, everywhere
from mps_sdpa.environment import environment

__all__ = ["calibrate", "calibration_summary", "measured_points", "prepare", "use_cached"]

_log = logging.getLogger("mps_sdpa.calibration")

_HEADS = 4
_LENGTHS = {"cpu": (4, 16, 64, 256), "mps": (64, 256, 512, 1024, 2048)}
_DIMS = (64, 128)  # one of each class
_MEASURED = ("float32", "bfloat16", "float16")
_BUDGET_SECONDS = {"cpu": 3.0, "mps": 5.0}

_BUILT_IN = everywhere(0.0)

#: Above this share of the CPU that others used, a measurement says more of them than of us.
_DISTURBED = 0.25

_points: dict[str, list[Point]] = {}
_disturbed: dict[str, str] = {}

#: Devices whose thresholds this process has taken up or tried to measure.
_prepared: set[str] = set()
_preparing = threading.Lock()


def calibrate(device: str | torch.device | None = None, force: bool = False) -> Thresholds:
    """The least work from which on our back end is used, as [pass][dtype][largest head dimension];
    0 is always.

    Measures the real path in interleaved pairs within three seconds on a CPU and five on a GPU,
    shows progress on a terminal, and keeps the result. Without `force` a result that is kept
    already is used. What was measured while other programs were busy is dropped, and the built-in
    thresholds are returned.
    """
    kind = torch.device(device if device is not None else _default_device()).type
    _prepared.add(kind)
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
    """Takes up kept thresholds, if there are any; measures nothing, now or later by itself."""
    _prepared.add(device)
    if environment().skip_calibration:
        return
    if (thresholds := threshold_cache.read(device)) is not None:
        _use(device, thresholds)


def prepare(device: str) -> None:
    """Takes up kept thresholds or measures them; once a process, however that ends.

    A call that comes meanwhile, from the measurement or another thread, does not wait for it.
    """
    if device in _prepared or not _preparing.acquire(blocking=False):
        return
    try:
        _prepared.add(device)
        if not environment().skip_calibration:
            calibrate(device)
    except Exception as error:  # whatever it is, the call that it was made for shall go on
        _log.warning("calibration failed, so the built-in crossovers serve: %s", error)
    finally:
        _preparing.release()


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
        f"{dtype} {which} D<={dim} {in_words(thresholds[which][dtype][dim])}"
        for which in PASSES
        for dtype in _MEASURED
        for dim in DIMS
    ]
    return "Ours from this work on: " + ", ".join(parts) + "."


def in_words(work: float) -> str:
    if work == 0:
        return "always"
    return "never" if work == float("inf") else f"{work:.2g}"


def _default_device() -> str:
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _use(device: str, thresholds: Thresholds) -> None:
    lists = [
        [[thresholds[which][dtype][dim] for dim in DIMS] for dtype in DTYPES] for which in PASSES
    ]
    engine.set_thresholds(device, lists)


def _measured(device: str) -> tuple[Thresholds, float]:
    """Thresholds, and the share of the CPU that other programs used meanwhile."""
    from mps_sdpa.harness.environment import Watch

    name = next((name for name in available_backends() if _runs_on(name, device)), None)
    if name is None:
        raise RuntimeError(f"no back end can be used on device {device!r}, so none is calibrated")
    with Watch() as watch, stats.uncounted():
        points = list(_measure(name, device))
    _points[device] = points
    level = logging.INFO if environment().log_calibration else logging.DEBUG
    for point in points:
        _log.log(
            level,
            "%s %s D%d work %.3g: %.2f",
            point.which,
            point.dtype,
            point.dim,
            point.work,
            point.speedup,
        )
    return crossovers(points), watch.others


def _runs_on(name: str, device: str) -> bool:
    return name == "cpu" if device == "cpu" else name not in ("cpu", "stock", "metal_proto")


def _measure(backend: str, device: str) -> Iterator[Point]:
    """Every point of the grid, small ones first, while another one fits into the budget."""
    from mps_sdpa.harness.progress import track

    grid = [
        (length, dim, dtype, which)
        for length in _LENGTHS[device]
        for dim in _DIMS
        for dtype in _MEASURED
        for which in PASSES
    ]
    budget = _BUDGET_SECONDS[device]
    share = budget / len(grid)
    start = before = time.monotonic()
    longest = 0.0
    for length, dim, dtype, which in track(grid, lambda _: f"calibrating {backend}"):
        now = time.monotonic()
        longest, before = max(longest, now - before), now
        if now - start + longest > budget:
            _log.info(
                "calibration stopped at length %d: its budget of %g s is spent", length, budget
            )
            return
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
    return Point(which, dtype, dim, float(_HEADS * length * length * dim), found.value, found.high)
