# SPDX-License-Identifier: MIT
"""How far a result may be from the double-precision reference, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
    got, want = actual.detach().double().cpu(), expected.double().cpu()
    if got.numel() == 0:
        return Comparison(name, None, 0.0, 0.0)
    difference = torch.where(got == want, 0.0, (got - want).abs())
    finite_size = want.abs().where(want.isfinite(), 0.0)
    excess = difference - (allowed.absolute + allowed.relative * finite_size)
    invalid = got.isnan() | (got.isinf() & (got != want))
    excess = excess.masked_fill(invalid | difference.isnan(), float("inf"))
    worst = int(excess.argmax())
    index = tuple(int(n) for n in torch.unravel_index(torch.tensor(worst), got.shape))
    failure = "nan" if bool(invalid.any()) else "value" if float(excess.max()) > 0 else None
    finite = difference[~invalid]
    relative = finite / want.abs()[~invalid].clamp_min(allowed.absolute)
    return Comparison(
        tensor=name,
        failure=failure,
        max_abs_err=float(finite.max()) if finite.numel() else float("inf"),
        max_rel_err=float(relative.max()) if finite.numel() else float("inf"),
        index=index,
        actual=float(got[index]),
        expected=float(want[index]),
    )
