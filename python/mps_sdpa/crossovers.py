# SPDX-License-Identifier: MIT
"""From which amount of work on a back end beats torch's own function: a pure policy.

Measurements in, thresholds out; no clock and no device, so that tests give it any measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["DTYPES", "PASSES", "Point", "Thresholds", "crossovers", "minimum_work"]

PASSES = ("forward", "train")
#: In the order of sdpa::DType.
DTYPES = ("float32", "float16", "bfloat16", "float64", "bool")

#: A speed-up below this, and beyond doubt below 1, counts as slower.
_NOT_SLOWER = 0.97

#: thresholds[pass][dtype]: the least work; 0 is always and infinity is never.
Thresholds = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: torch's time over ours for this amount of work, the median of some pairs;
    `high` is the upper end of its interval."""

    which: str
    dtype: str
    work: float
    speedup: float
    high: float | None = None

    @property
    def is_slower(self) -> bool:
        return self.speedup < _NOT_SLOWER and (self.high is None or self.high < 1)


def crossovers(points: Iterable[Point]) -> Thresholds:
    """The threshold of every pass and dtype; what was not measured stays at 0."""
    every = list(points)
    return {
        which: {
            dtype: minimum_work([p for p in every if (p.which, p.dtype) == (which, dtype)])
            for dtype in DTYPES
        }
        for which in PASSES
    }


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
