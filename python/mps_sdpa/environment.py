# SPDX-License-Identifier: MIT
"""The environment variables that mps_sdpa knows, read here and nowhere else in Python.

They are read once, at the first use; `environment.cache_clear()` makes the next use read again.
MPS_SDPA_ISA is listed here and read by sdpa/cpu/instruction_set.cpp, for programs without Python.
"""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MOST_THREADS", "VARIABLES", "Environment", "environment"]

VARIABLES = {
    "MPS_SDPA_BACKEND": "the back end that backend='auto' means",
    "MPS_SDPA_STRICT": "1: an error where another back end than the one asked for would run",
    "MPS_SDPA_SKIP_CALIBRATION": "1: keep the order of preference",
    "MPS_SDPA_FORCE_CALIBRATE": "1: measure the crossovers again",
    "MPS_SDPA_LOG_CALIBRATION": "1: log what calibration measures",
    "MPS_SDPA_LOG_FALLBACKS": "how loud fallbacks are logged: 1, true or info; warn; else debug",
    "MPS_SDPA_CACHE_DIR": "where calibration is kept",
    "MPS_SDPA_ISA": "one of the CPU's instruction sets, for tests and comparison",
    "MPS_SDPA_THREADS": "the number of threads; torch's own by default",
}


#: OpenMP ends the process where the system has no more.
MOST_THREADS = 1024


@dataclass(frozen=True)
class Environment:
    """The values of the variables, parsed."""

    backend: str
    strict: bool
    skip_calibration: bool
    force_calibrate: bool
    log_calibration: bool
    fallback_level: int
    cache_dir: Path | None
    threads: int


def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


def _fallback_level() -> int:
    word = os.environ.get("MPS_SDPA_LOG_FALLBACKS", "").strip().lower()
    if word in {"1", "true", "info"}:
        return logging.INFO
    return logging.WARNING if word in {"warn", "warning"} else logging.DEBUG


def _threads() -> int:
    text = os.environ.get("MPS_SDPA_THREADS", "").strip()
    if not text:
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise RuntimeError(
            f"MPS_SDPA_THREADS must be a number from 1 to {MOST_THREADS}, but it is {text!r}"
        )
    return int(text)


@functools.cache
def environment() -> Environment:
    """The variables as they were at the first use."""
    cache_dir = os.environ.get("MPS_SDPA_CACHE_DIR")
    return Environment(
        backend=os.environ.get("MPS_SDPA_BACKEND", "").strip() or "auto",
        strict=_flag("MPS_SDPA_STRICT"),
        skip_calibration=_flag("MPS_SDPA_SKIP_CALIBRATION"),
        force_calibrate=_flag("MPS_SDPA_FORCE_CALIBRATE"),
        log_calibration=_flag("MPS_SDPA_LOG_CALIBRATION"),
        fallback_level=_fallback_level(),
        cache_dir=Path(cache_dir) if cache_dir else None,
        threads=_threads(),
    )
