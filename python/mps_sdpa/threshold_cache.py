# SPDX-License-Identifier: MIT
"""thresholds.json: what calibration found, kept between processes.

Written to a temporary file and renamed, under a lock, so that a reader never sees half of it and
two writers do not lose each other's device. A damaged file, one of another machine or version, or
a folder that cannot be written is logged and ignored, never an error.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs
import torch

from mps_sdpa import _core
from mps_sdpa.crossovers import DIMS, DTYPES, PASSES, Ladder, Point, Thresholds
from mps_sdpa.environment import environment

__all__ = ["cache_file", "fingerprint", "read", "read_points", "write"]

_SCHEMA = 3
_log = logging.getLogger("mps_sdpa.calibration")


def cache_file() -> Path:
    """Where thresholds are kept."""
    folder = environment().cache_dir or platformdirs.user_cache_path("mps_sdpa")
    return folder / "thresholds.json"


def fingerprint() -> dict[str, Any]:
    """What must be the same for thresholds to hold."""
    return {
        "schema": _SCHEMA,
        "chip": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "os": platform.platform(),
        "torch": torch.__version__,
        "mps_sdpa": _core.version,
    }


def read(device: str) -> Thresholds | None:
    """The thresholds of a device, or None where there are none that hold here."""
    entry = _devices().get(device)
    if entry is None:
        return None
    try:
        kept = entry["ladders"]
        return {
            which: {
                dtype: {dim: _decoded(kept[which][dtype][str(dim)]) for dim in DIMS}
                for dtype in DTYPES
            }
            for which in PASSES
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        _log.warning("%s is damaged and is ignored", cache_file())
        return None


def read_points(device: str) -> list[Point]:
    """The measurements that a device's thresholds come from, for reports."""
    try:
        return [Point(**point) for point in _devices()[device]["points"]]
    except (KeyError, TypeError):
        return []


def write(device: str, thresholds: Thresholds, points: Sequence[Point] = ()) -> bool:
    """Keeps a device's thresholds beside those of others; False where it cannot be written."""
    path = cache_file()
    entry = {"ladders": _encoded(thresholds), "points": [asdict(point) for point in points]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            devices = {**_devices(), device: entry}
            _replace(path, json.dumps({"fingerprint": fingerprint(), "devices": devices}, indent=1))
    except OSError as error:
        _log.warning("thresholds are not kept: %s", error)
        return False
    return True


def _devices() -> dict[str, Any]:
    """What the file holds if it is whole and of this machine, else nothing."""
    path = cache_file()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, devices = content["fingerprint"], content["devices"]
        if not isinstance(devices, dict):
            raise TypeError("devices")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s cannot be read and is ignored: %s", path, error)
        return {}
    if found != fingerprint():
        _log.warning("%s is of another machine or version and is ignored", path)
        return {}
    return devices


def _encoded(thresholds: Thresholds) -> dict[str, Any]:
    """JSON has no infinity: never is null. Its keys are strings."""
    return {
        which: {
            dtype: {
                str(dim): {
                    name: None if math.isinf(work) else work for name, work in ladder.items()
                }
                for dim, ladder in by_dim.items()
            }
            for dtype, by_dim in each.items()
        }
        for which, each in thresholds.items()
    }


def _decoded(ladder: Any) -> Ladder:
    """A name of another version of this package is left to the fingerprint."""
    return {str(name): _number(work) for name, work in ladder.items()}


def _number(value: Any) -> float:
    if value is None:
        return math.inf
    number = float(value)
    if not number >= 0:
        raise ValueError(f"{value!r} is not an amount of work")
    return number


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among processes; the lock goes with the file's descriptor, so a crash frees it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    Path(file.name).replace(path)
