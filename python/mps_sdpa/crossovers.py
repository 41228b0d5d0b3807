# SPDX-License-Identifier: MIT
"""From which amount of work on a back end beats torch's own function: a pure policy.

Measurements in, thresholds out; no clock and no device, so that tests give it any measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mps_sdpa import _core

__all__ = [
    "DIMS",
    "DTYPES",
    "PASSES",
    "Point",
    "Thresholds",
    "crossovers",
    "everywhere",
    "minimum_work",
]

PASSES = ("forward", "train")
#: In the order of sdpa::DType.
DTYPES = ("float32", "float16", "bfloat16", "float64", "bool")

#: Head dimensions up to each of these, and above the one before, share a threshold.
DIMS: tuple[int, ...] = _core.dim_bounds

#: A speed-up below this, and beyond doubt below 1, counts as slower.
_NOT_SLOWER = 0.97

#: thresholds[pass][dtype][dim]: the least work for head dimensions up to `dim`; 0 is always and
#: infinity is never.
Thresholds = dict[str, dict[str, dict[int, float]]]


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: torch's time over ours for this amount of work, the median of some pairs;
    `high` is the upper end of its interval."""

    which: str
    dtype: str
    dim: int
    work: float
    speedup: float
    high: float | None = None

    @property
    def dims(self) -> int:
        """The class of its head dimension."""
        return next(bound for bound in DIMS if self.dim <= bound)

    @property
    def is_slower(self) -> bool:
        return self.speedup < _NOT_SLOWER and (self.high is None or self.high < 1)


def everywhere(work: float) -> Thresholds:
    """The same threshold for everything."""
    return {which: {dtype: dict.fromkeys(DIMS, work) for dtype in DTYPES} for which in PASSES}


def crossovers(points: Iterable[Point]) -> Thresholds:
    """The threshold of every pass, dtype and class of head dimensions; what was not measured stays
    at 0."""
    measured: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        measured.setdefault((point.which, point.dtype, point.dims), []).append(point)
    found = everywhere(0.0)
    for (which, dtype, dims), group in measured.items():
        found[which][dtype][dims] = minimum_work(group)
    return found


def minimum_work(points: Iterable[Point]) -> float:
    """The least measured work from which on no measurement is slower than torch.

    Monotone by construction: one slow point lifts the threshold above it, whatever is below. Fast
    at every size is 0, slow at the largest is infinity.
    """
    threshold = 0.0
    rising = sorted(points, key=lambda point: point.work)
    above = [point.work for point in rising[1:]] + [math.inf]
    for point, following in zip(rising, above, strict=False):
        if point.is_slower:
            threshold = following
    return threshold
