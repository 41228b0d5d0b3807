# SPDX-License-Identifier: MIT
"""Measures, on this machine, from which amount of work on which back end is the fastest.

On the CPU the built-in order serves, which sends everything to us, and nothing is timed unless
`calibrate` is called. On an Apple GPU the first call that a threshold may decide has them measured.
What is found is kept and serves later processes too.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from mps_sdpa import engine, stats, threshold_cache
from mps_sdpa.backends import available_backends
from mps_sdpa.crossovers import (
    DIMS,
    DTYPES,
    PASSES,
    Ladder,
    Point,
    Thresholds,
    class_of,
    crossovers,
    everywhere,
)
from mps_sdpa.environment import environment

__all__ = [
    "MEASURED",
    "calibrate",
    "calibration_summary",
    "in_words",
    "known_about",
    "prepare",
    "take_up",
    "use_cached",
]

_log = logging.getLogger("mps_sdpa.calibration")

_HEADS = 4
_LENGTHS = {"cpu": (4, 16, 64, 256, 1024), "mps": (64, 256, 1024, 2048)}
_DIMS = (64, 128)  # one of each class
_BUDGET_SECONDS = 6.0

#: The dtypes that are timed.
MEASURED = ("float32", "float16", "bfloat16")

#: Above this share of the CPU that others used, a measurement says more of them than of us.
_DISTURBED = 0.25

_disturbed: dict[str, str] = {}

#: What this process uses, by device, and for which devices it has looked at the cache.
_in_use: dict[str, Thresholds] = {}
_looked: set[str] = set()

#: Devices that this process measures by itself no more.
_prepared: set[str] = set()
_preparing = threading.Lock()


def calibrate(device: str | torch.device | None = None, force: bool = False) -> Thresholds:
    """The least work from which on each back end is used, as [pass][dtype][largest head
    dimension][back end], the one for the largest work first; 0 is always.

    Measures the real path of every back end in interleaved rounds with torch's, within six
    seconds, shows progress on a terminal, and keeps the result. Without
    `force` a result that is kept already is used. What was measured while other programs were busy
    is dropped, and the built-in order is returned.
    """
    kind = torch.device(device if device is not None else _default_device()).type
    _prepared.add(kind)
    kept = None if force or environment().force_calibrate else threshold_cache.read(kind)
    if kept is not None:
        _use(kind, kept)
        return kept
    names = _on(kind)
    points, others = _measured(names, kind)
    if others > _DISTURBED:
        _disturbed[kind] = f"Other programs used {others:.0%} of the CPU, so nothing was kept. "
        _log.warning("calibration: %s", _disturbed[kind])
        return everywhere(dict.fromkeys(names, 0.0))
    _disturbed.pop(kind, None)
    works = {class_of(dim): [_work(n, dim) for n in _LENGTHS[kind]] for dim in _DIMS}
    thresholds = crossovers(points, names, works)
    threshold_cache.write(kind, thresholds, points)
    _use(kind, thresholds)
    return thresholds


def take_up(device: str) -> Thresholds | None:
    """What this process uses: kept thresholds, if there are any. The cache is read once."""
    if environment().skip_calibration:
        return None
    if device not in _looked:
        _looked.add(device)
        if (thresholds := threshold_cache.read(device)) is not None:
            _use(device, thresholds)
    return _in_use.get(device)


def use_cached(device: str) -> None:
    """Takes up kept thresholds, if there are any; measures nothing, now or later by itself."""
    _prepared.add(device)
    take_up(device)


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
        _log.warning("calibration failed, so the built-in order serves: %s", error)
    finally:
        _preparing.release()


def calibration_summary(device: str) -> str:
    """What calibration knows about a device, in one sentence."""
    thresholds = take_up(device)
    if thresholds is None:
        return _why_none(device)
    found = {
        f"{dtype} {which} D<={dim}": in_words(thresholds[which][dtype][dim])
        for which in PASSES
        for dtype in MEASURED
        for dim in DIMS
    }
    usual, count = collections.Counter(found.values()).most_common(1)[0]
    parts = [f"{kind} {words}" for kind, words in found.items() if words != usual or count == 1]
    if count > 1:
        parts.append(f"{'everything else' if parts else 'everything'} {usual}")
    return f"Measured on this machine, by work: {'; '.join(parts)}."


def known_about(device: str, which: str, dtype: str, dim: int) -> str:
    """What calibration knows that decides calls of one kind."""
    thresholds = take_up(device)
    if thresholds is None:
        return _why_none(device)
    rungs = thresholds[which][dtype].get(class_of(dim), {}) if dim <= DIMS[-1] else {}
    kind = f"{which} in {dtype} with head dimensions to {class_of(dim)}" if rungs else "such calls"
    return f"Measured on this machine for {kind}: {in_words(rungs)}."


def _why_none(device: str) -> str:
    if environment().skip_calibration:
        return "Skipped by MPS_SDPA_SKIP_CALIBRATION; the built-in order serves."
    why = _disturbed.get(device, "")
    return f"{why}None is kept for {device}; the built-in order serves: every size is ours."


def in_words(rungs: Ladder) -> str:
    """A ladder from its foot to its top."""
    if not rungs:
        return "nothing, so every size is ours"
    parts: list[str] = []
    least = float("inf")
    for name, work in rungs.items():  # the one for the largest work first
        if work < least:
            parts.append(name if work == 0 else f"{name} from {work:.2g} on")
            least = work
    if least > 0:
        parts.append("torch")
    return ", ".join(reversed(parts)) if len(parts) > 1 else f"{parts[0]} at every size"


def _default_device() -> str:
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _use(device: str, thresholds: Thresholds) -> None:
    _in_use[device] = thresholds
    lists = [
        [[list(thresholds[which][dtype][dim].items()) for dim in DIMS] for dtype in DTYPES]
        for which in PASSES
    ]
    engine.set_thresholds(device, lists)


def _on(device: str) -> list[str]:
    """The back ends to measure for a device, in order of preference."""
    names = [name for name in available_backends() if _runs_on(name, device)]
    if not names:
        raise RuntimeError(f"no back end can be used on device {device!r}, so none is calibrated")
    return names


def _runs_on(name: str, device: str) -> bool:
    if device == "cpu":
        return name == "cpu"
    return device == "mps" and name not in ("cpu", "stock", "metal_proto")


def _measured(names: Sequence[str], device: str) -> tuple[list[Point], float]:
    """What was measured, and the share of the CPU that other programs used meanwhile."""
    from mps_sdpa.harness.environment import Watch

    with Watch() as watch, stats.uncounted() as fallbacks:
        points = list(_measure(names, device, fallbacks))
    level = logging.INFO if environment().log_calibration else logging.DEBUG
    for point in points:
        _log.log(
            level,
            "%s %s %s D%d work %.3g: %.2f [%.2f, %.2f]",
            point.backend,
            point.which,
            point.dtype,
            point.dim,
            point.work,
            point.speedup,
            point.low,
            point.high,
        )
    return points, watch.others


def _work(length: int, dim: int) -> float:
    return float(_HEADS * length * length * dim)


def _measure(names: Sequence[str], device: str, fallbacks: list[str]) -> Iterator[Point]:
    """Every point of the grid, small ones first, while another one fits into the budget."""
    from mps_sdpa.harness.progress import track

    grid = [
        (length, dim, dtype, which)
        for length in _LENGTHS[device]
        for dim in _DIMS
        for dtype in MEASURED
        for which in PASSES
    ]
    share = _BUDGET_SECONDS / len(grid)
    start = before = time.monotonic()
    longest = 0.0
    for length, dim, dtype, which in track(grid, lambda _: f"calibrating {', '.join(names)}"):
        now = time.monotonic()
        longest, before = max(longest, now - before), now
        if now - start + longest > _BUDGET_SECONDS:
            _log.info(
                "calibration stopped at length %d: its %g s are spent", length, _BUDGET_SECONDS
            )
            return
        place = (device, length, dim, dtype, which)
        points = _time(names, place, share, fallbacks)
        if any(point.is_slower for point in points):  # must be seen twice
            points += _time([point.backend for point in points], place, share, fallbacks)
        yield from _fastest(points)


def _fastest(points: Iterable[Point]) -> Iterable[Point]:
    """Of each back end the better measurement."""
    found: dict[str, Point] = {}
    for point in points:
        known = found.setdefault(point.backend, point)
        found[point.backend] = max(known, point, key=lambda each: each.speedup)
    return found.values()


def _time(
    names: Sequence[str],
    place: tuple[str, int, int, str, str],
    budget: float,
    fallbacks: list[str],
) -> list[Point]:
    """Torch's function and the back ends in turn; those that leave the call to another have no
    point."""
    from mps_sdpa.harness import calls, timing
    from mps_sdpa.harness.benchmark import no_grad
    from mps_sdpa.harness.cases import Case
    from mps_sdpa.harness.data import make_inputs
    from mps_sdpa.harness.peaks import synchronizer

    device, length, dim, dtype, which = place
    case = Case("", "", dtype, 1, _HEADS, _HEADS, length, length, dim, dim)
    inputs = make_inputs(case, device=device)
    if which == "train":
        inputs.require_grad()

    def run_of(name: str) -> timing.Call:
        forward = calls.forward_call(case, inputs, name)
        return calls.train_call(forward, inputs) if which == "train" else no_grad(forward)

    def has_run(name: str) -> bool:
        refused = calls.refusal(case, inputs, name, gradients=which == "train")
        return refused is None and _is_its_own(name, runs[name], fallbacks)

    runs = {name: run_of(name) for name in ("stock", *names)}
    running = ["stock", *filter(has_run, names)]
    times = timing.rounds(
        [runs[name] for name in running],
        budget=budget / 2,
        warm_up_limit=budget / 2 / len(running),
        synchronize=synchronizer(device),
    )
    speedups = [timing.median_interval(times[:, 0] / seconds) for seconds in times.T[1:]]
    return [
        Point(name, which, dtype, dim, _work(length, dim), each.value, each.low, each.high)
        for name, each in zip(running[1:], speedups, strict=True)
    ]


def _is_its_own(name: str, run: Callable[[], object], fallbacks: list[str]) -> bool:
    """Whether a back end does what it is called for, seen by one call."""
    before = len(fallbacks)
    try:
        run()
    except Exception as error:  # whatever it is, it is a back end that cannot be used
        _log.warning("calibration leaves out %s: %s", name, error)
        return False
    return len(fallbacks) == before
