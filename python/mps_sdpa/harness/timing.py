# SPDX-License-Identifier: MIT
"""Paired, interleaved timing. Two calls are timed in turn, in an order drawn anew for every pair,
so that drift, heat and other load meet both alike; only ratios within a pair are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Call = Callable[[], object]
Floats = np.ndarray[Any, np.dtype[np.float64]]

_SAMPLE_SECONDS = 2e-3  # a sample repeats the call for at least this long
_WARM_UP_SECONDS = 0.5
_STABLE = 0.05
_RESAMPLES = 2000
_OUTLIER = 3.5  # in robust standard deviations
_DRIFT = 1.15


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_conclusive(self) -> bool:
        """Whether a ratio differs from 1 beyond doubt."""
        return self.low > 1 or self.high < 1


@dataclass(frozen=True, slots=True)
class Paired:
    """The times of both calls, pair by pair, in seconds."""

    candidate: Floats
    baseline: Floats

    @property
    def ratios(self) -> Floats:
        """Candidate over baseline: below 1 the candidate is faster."""
        return self.candidate / self.baseline

    def speedup(self) -> Interval:
        """Baseline over candidate, by the median of the pairs."""
        return median_interval(1 / self.ratios)

    def outliers(self) -> int:
        logs = np.log(self.ratios)
        distance = np.abs(logs - np.median(logs))
        spread = 1.4826 * float(np.median(distance))
        return int((distance > _OUTLIER * max(spread, 1e-3)).sum())

    def drift(self) -> float:
        """The last third's time over the first third's: well above 1 when the machine throttles."""
        third = max(1, len(self.baseline) // 3)
        both = self.baseline * self.candidate
        return float(np.sqrt(np.median(both[-third:]) / np.median(both[:third])))

    def notes(self) -> list[str]:
        found = []
        if outliers := self.outliers():
            found.append(f"{outliers} of {len(self.ratios)} pairs are outliers")
        if (drift := self.drift()) > _DRIFT:
            found.append(f"slowed down by {drift:.2f} while measuring")
        return found


def median_interval(values: Floats, *, seed: int = 0) -> Interval:
    """The median and its bootstrap 95 % interval."""
    generator = np.random.default_rng(seed)
    drawn = generator.choice(values, size=(_RESAMPLES, len(values)), replace=True)
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return Interval(float(np.median(values)), float(low), float(high))


def weighted_geomean(ratios: list[Floats], weights: list[float], *, seed: int = 0) -> Interval:
    """The weighted geometric mean of each case's median ratio; pairs are drawn anew per case."""
    share = np.asarray(weights, dtype=float) / sum(weights)
    generator = np.random.default_rng(seed)

    def medians(values: Floats) -> Floats:
        drawn = generator.choice(values, size=(_RESAMPLES, len(values)), replace=True)
        return np.asarray(np.log(np.median(drawn, axis=1)))

    sampled = sum(w * medians(r) for w, r in zip(share, ratios, strict=True))
    value = sum(w * np.log(np.median(r)) for w, r in zip(share, ratios, strict=True))
    low, high = np.percentile(np.exp(sampled), [2.5, 97.5])
    return Interval(float(np.exp(value)), float(low), float(high))


def seconds(call: Call, repeats: int, synchronize: Call) -> float:
    """The mean time of one call."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


def warm_up(call: Call, synchronize: Call, *, limit: float = _WARM_UP_SECONDS) -> float:
    """Calls until three times in a row agree, or for half a second; returns the last time."""
    recent: list[float] = []
    deadline = time.perf_counter() + limit
    while True:
        recent = [*recent[-2:], seconds(call, 1, synchronize)]
        stable = len(recent) == 3 and max(recent) < (1 + _STABLE) * min(recent)
        if stable or time.perf_counter() > deadline:
            return statistics.median(recent)


def paired(
    candidate: Call,
    baseline: Call,
    *,
    pairs: int | None = None,
    budget: float = 5.0,
    warm_up_limit: float = _WARM_UP_SECONDS,
    synchronize: Call = lambda: None,
    between: Call = lambda: None,
    seed: int = 0,
) -> Paired:
    """Times both calls in pairs: as many as asked for, or what fits the budget (5 to 31).

    `between` is called before each pair, untimed.
    """
    times = rounds(
        (candidate, baseline),
        count=pairs,
        budget=budget,
        warm_up_limit=warm_up_limit,
        synchronize=synchronize,
        between=between,
        seed=seed,
    )
    return Paired(candidate=times[:, 0].copy(), baseline=times[:, 1].copy())


def rounds(
    calls: Sequence[Call],
    *,
    count: int | None = None,
    budget: float = 5.0,
    warm_up_limit: float = _WARM_UP_SECONDS,
    synchronize: Call = lambda: None,
    between: Call = lambda: None,
    seed: int = 0,
) -> Floats:
    """The seconds of every call as [round, call], in an order drawn anew for each round."""
    estimates = [warm_up(call, synchronize, limit=warm_up_limit) for call in calls]
    repeats = [max(1, round(_SAMPLE_SECONDS / estimate)) for estimate in estimates]
    round_seconds = sum(n * t for n, t in zip(repeats, estimates, strict=True))
    count = count or min(31, max(5, round(budget / round_seconds)))
    times, generator = np.empty((count, len(calls))), np.random.default_rng(seed)
    for row in times:
        between()
        for which in generator.permutation(len(calls)):
            row[which] = seconds(calls[which], repeats[which], synchronize)
    return times
