# SPDX-License-Identifier: MIT
"""How far a result may be from the double-precision reference, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_CHUNK = 2**16  # elements compared at a time, so that they stay in the cache

_FORWARD = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (5e-6, 5e-5),
    torch.float16: (5e-3, 5e-2),
    torch.bfloat16: (5e-3, 5e-2),
}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|actual - expected| <= absolute + relative * |expected|."""

    absolute: float
    relative: float


def tolerance(dtype: torch.dtype, *, gradient: bool = False) -> Tolerance:
    """The accuracy contract: gradients may be twice as far away."""
    absolute, relative = _FORWARD[dtype]
    factor = 2.0 if gradient else 1.0
    return Tolerance(absolute * factor, relative * factor)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one tensor's comparison found; `failure` is None where it is within the tolerance."""

    tensor: str
    failure: str | None
    max_abs_err: float
    max_rel_err: float
    index: tuple[int, ...] = ()
    actual: float = 0.0
    expected: float = 0.0

    def sentence(self) -> str:
        """The worst element: its place and both values."""
        place = ", ".join(map(str, self.index))
        return f"{self.tensor}[{place}] is {self.actual:.9g}; the reference is {self.expected:.9g}"


def compare(
    name: str, actual: torch.Tensor, expected: torch.Tensor, allowed: Tolerance
) -> Comparison:
    """Compares in double precision; infinities must be equal, and NaN is always a failure."""
    if actual.shape != expected.shape:
        return Comparison(name, "shape", float("nan"), float("nan"))
    got, want = actual.detach().cpu().flatten(), expected.cpu().flatten()
    if got.numel() == 0:
        return Comparison(name, None, 0.0, 0.0)
    chunks = zip(torch.split(got, _CHUNK), torch.split(want, _CHUNK), strict=True)
    found = [_compare(one.double(), other.double(), allowed) for one, other in chunks]
    which = max(range(len(found)), key=lambda n: found[n].excess)
    place = which * _CHUNK + found[which].place
    index = torch.unravel_index(torch.tensor(place), actual.shape)
    wrong = "value" if found[which].excess > 0 else None
    return Comparison(
        tensor=name,
        failure="nan" if any(part.has_invalid for part in found) else wrong,
        max_abs_err=max(part.absolute for part in found),
        max_rel_err=max(part.relative for part in found),
        index=tuple(int(n) for n in index),
        actual=float(got[place]),
        expected=float(want[place]),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """What a stretch of elements came to; `place` is that of the one farthest out of bounds."""

    excess: float
    place: int
    has_invalid: bool
    absolute: float
    relative: float


def _compare(got: torch.Tensor, want: torch.Tensor, allowed: Tolerance) -> _Part:
    difference = torch.where(got == want, 0.0, (got - want).abs_())
    size = want.abs()
    invalid = got.isnan() | (got.isinf() & (got != want))
    bound = size.where(size.isfinite(), 0.0).mul_(allowed.relative).add_(allowed.absolute)
    excess = (difference - bound).masked_fill_(invalid | difference.isnan(), torch.inf)
    place = int(excess.argmax())
    has_invalid = bool(invalid.any())
    if has_invalid:
        difference, size = difference[~invalid], size[~invalid]
    if not difference.numel():
        return _Part(float(excess[place]), place, True, float("inf"), float("inf"))
    relative = (difference / size.clamp_min_(allowed.absolute)).max()
    return _Part(float(excess[place]), place, has_invalid, float(difference.max()), float(relative))
