# SPDX-License-Identifier: MIT
"""Which back end from which amount of work on: a pure policy.

Measurements in, ladders out; no clock and no device, so that tests give it any measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mps_sdpa import _core

__all__ = [
    "DIMS",
    "DTYPES",
    "PASSES",
    "Ladder",
    "Point",
    "Thresholds",
    "class_of",
    "crossovers",
    "everywhere",
    "is_slower",
    "ladder",
]

PASSES = ("forward", "train")
#: In the order of sdpa::DType.
DTYPES = ("float32", "float16", "bfloat16", "float64", "bool")

#: Head dimensions up to each of these, and above the one before, share a ladder.
DIMS: tuple[int, ...] = _core.dim_bounds

#: A speed below this share of another's, and beyond doubt below it, counts as slower.
_NOT_SLOWER = 0.97

#: Back ends in the order in which they are tried, each with the least work from which on it is; 0
#: is always and infinity is never. Where none has enough work, torch's own function runs. Empty:
#: nothing was measured.
Ladder = dict[str, float]

#: thresholds[pass][dtype][dim]: the ladder for head dimensions up to `dim`.
Thresholds = dict[str, dict[str, dict[int, Ladder]]]


def is_slower(speedup: float, high: float) -> bool:
    """Whether torch's time over ours, with its interval up to `high`, says that torch is faster."""
    return speedup < _NOT_SLOWER and high < 1


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: torch's time over a back end's for this amount of work, the median of some
    rounds with the ends of its interval."""

    backend: str
    which: str
    dtype: str
    dim: int
    work: float
    speedup: float
    low: float
    high: float

    @property
    def is_slower(self) -> bool:
        return is_slower(self.speedup, self.high)

    def is_slower_than(self, other: Point) -> bool:
        return self.speedup < _NOT_SLOWER * other.speedup and self.high < other.low


def class_of(dim: int) -> int:
    """The bound that a head dimension shares a ladder under."""
    return next(bound for bound in DIMS if dim <= bound)


def everywhere(rungs: Ladder) -> Thresholds:
    """The same ladder for everything."""
    return {
        which: {dtype: {dim: dict(rungs) for dim in DIMS} for dtype in DTYPES} for which in PASSES
    }


def crossovers(
    points: Iterable[Point], order: Sequence[str], works: Mapping[int, Sequence[float]]
) -> Thresholds:
    """The ladder of every pass, dtype and class of head dimensions. `order` is that of preference;
    `works` has, by class, the amounts of work that were to be measured."""
    measured: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        measured.setdefault((point.which, point.dtype, class_of(point.dim)), []).append(point)
    found = everywhere({})
    for (which, dtype, dims), group in measured.items():
        found[which][dtype][dims] = ladder(group, order, works[dims])
    return found


def ladder(points: Iterable[Point], order: Sequence[str], works: Sequence[float]) -> Ladder:
    """The back ends measured, the one for the largest work first.

    Each is tried from the least work on from which it is at no work slower than those that come
    after it, or than torch: so each takes over once, with growing work, and none is left in between
    for being slow in one place.
    """
    by_backend: dict[str, dict[float, Point]] = {}
    for point in points:
        by_backend.setdefault(point.backend, {})[point.work] = point
    left = [name for name in order if name in by_backend]
    found: Ladder = {}
    while left:
        name = _for_large_work([by_backend[each] for each in left], left)
        left.remove(name)
        found[name] = _minimum_work(by_backend[name], [by_backend[each] for each in left], works)
    return found


def _for_large_work(measured: Sequence[Mapping[float, Point]], names: Sequence[str]) -> str:
    """The first in order of preference that is slower than no other at the largest work that all
    were measured at; the fastest always is such a one."""
    common = set.intersection(*(set(each) for each in measured))
    if not common:
        return names[0]
    at_top = [each[max(common)] for each in measured]
    return next(
        name
        for name, point in zip(names, at_top, strict=True)
        if not any(point.is_slower_than(other) for other in at_top)
    )


def _minimum_work(
    own: Mapping[float, Point], others: Iterable[Mapping[float, Point]], works: Sequence[float]
) -> float:
    """The least work of the grid above every point where it is slower.

    Monotone by construction: one slow point lifts it above itself, whatever is below. Fast at every
    size is 0, slow at the largest is infinity. A size that there was no time to measure is not
    known to be slow.
    """
    rivals = [each[work] for each in others for work in each if work in own]
    slow = [
        point.work
        for point in own.values()
        if point.is_slower
        or any(rival.work == point.work and point.is_slower_than(rival) for rival in rivals)
    ]
    if not slow:
        return 0.0
    return min((work for work in works if work > max(slow)), default=math.inf)
