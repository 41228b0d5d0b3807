# SPDX-License-Identifier: MIT
"""The true peak of memory during a call: resident high-water, or the driver's on an Apple GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_CLEAR_HIGH_WATER = "5"  # see proc(5), clear_refs


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int | None:
    """How far memory rose above its level before the call; None where it cannot be measured."""
    if device == "mps":
        return _peak_on_mps(call)
    if not Path("/proc/self/clear_refs").exists():
        return None
    _release_free_memory()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text(_CLEAR_HIGH_WATER)
    call()
    return max(0, _resident("VmHWM") - before)


def resident_high_water() -> int:
    """The largest resident size of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _release_free_memory() -> None:
    """Gives free heap pages back, so that reusing them counts as growth."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _peak_on_mps(call: Callable[[], object]) -> int:
    torch.mps.synchronize()
    torch.mps.empty_cache()
    before = torch.mps.driver_allocated_memory()
    result = call()
    torch.mps.synchronize()
    after = torch.mps.driver_allocated_memory()
    del result
    return max(0, after - before)
