# SPDX-License-Identifier: MIT
"""What this machine can do at most, measured in the same run as the times it is compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mps_sdpa.harness.timing import seconds, warm_up

_SIDE = {"cpu": 1024, "mps": 4096}
_READ_BYTES = 2**28
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Peaks:
    """Floating-point operations per second of the best matrix product, and bytes read a second."""

    flops: dict[str, float]
    bandwidth: float

    def share(self, flops: float, bytes_moved: float, dtype: str, time: float) -> float:
        """The achieved part of the bound that applies: arithmetic or memory."""
        bound = max(flops / self.flops[dtype], bytes_moved / self.bandwidth)
        return bound / time


def synchronizer(device: str) -> Callable[[], None]:
    """Waits for the device; nothing to do on the CPU."""
    return torch.mps.synchronize if device == "mps" else _nothing


def _nothing() -> None:
    return None


@functools.cache
def measure_peaks(device: str = "cpu") -> Peaks:
    """Takes under two seconds. 16-bit peaks on the CPU are not below float32's: operands can be
    widened there."""
    single = _matrix_product(device, torch.float32)
    flops = {"float32": single, "float64": single / 2}
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        flops[name] = max(single, _matrix_product(device, dtype))
    return Peaks(flops, _read_bandwidth(device))


def _best(call: Callable[[], object], device: str) -> float:
    synchronize = synchronizer(device)
    warm_up(call, synchronize, limit=0.1)
    return min(seconds(call, 1, synchronize) for _ in range(_TRIES))


def _matrix_product(device: str, dtype: torch.dtype) -> float:
    side = _SIDE.get(device, 1024)
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    return 2.0 * side**3 / _best(lambda: left @ right, device)


def _read_bandwidth(device: str) -> float:
    block = torch.ones(_READ_BYTES // 4, device=device)
    return _READ_BYTES / _best(block.sum, device)
