# SPDX-License-Identifier: MIT
"""What this machine can do at most, measured in the same run as the times it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mps_sdpa import _core
from mps_sdpa.harness.timing import seconds, warm_up

_SIDE = 4096
_READ_BYTES = 2**28
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Peaks:
    """Floating-point operations a second by dtype, and bytes read a second, of all threads in use.

    On the CPU those of multiply-adds on registers, which no kernel can exceed: float16 has those of
    float32, and so has bfloat16 where there is no dot product of pairs. Elsewhere those of the best
    matrix product.
    """

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


def measure_peaks(device: str = "cpu") -> Peaks:
    """Takes half a second on the CPU, for the instruction set and the threads that are set."""
    if device == "cpu":
        found = _core.measure_peaks()
        single = found["float32"]
        flops = {"float32": single, "float16": single, "float64": single / 2}
        flops["bfloat16"] = found["bfloat16"] or single
        return Peaks(flops, found["bandwidth"])
    flops = {
        name: _matrix_product(device, dtype)
        for name, dtype in (
            ("float32", torch.float32),
            ("float16", torch.float16),
            ("bfloat16", torch.bfloat16),
        )
    }
    return Peaks(flops, _read_bandwidth(device))


def _best(call: Callable[[], object], device: str) -> float:
    synchronize = synchronizer(device)
    warm_up(call, synchronize, limit=0.1)
    return min(seconds(call, 1, synchronize) for _ in range(_TRIES))


def _matrix_product(device: str, dtype: torch.dtype) -> float:
    left, right = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    return 2.0 * _SIDE**3 / _best(lambda: left @ right, device)


def _read_bandwidth(device: str) -> float:
    block = torch.ones(_READ_BYTES // 4, device=device)
    return _READ_BYTES / _best(block.sum, device)
