# SPDX-License-Identifier: MIT
"""Fixtures of all Python tests: a fixed seed, and clean counters, defaults, environment and
calibration."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch

import mps_sdpa
from mps_sdpa import calibration, engine
from mps_sdpa.environment import environment

#: Empty at first, so that what was calibrated on this machine decides nothing.
_cache = tempfile.TemporaryDirectory()
os.environ["MPS_SDPA_CACHE_DIR"] = _cache.name


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees another's seed, counters, default back end, environment or calibration."""
    torch.manual_seed(0)
    for name in ("MPS_SDPA_BACKEND", "MPS_SDPA_STRICT", "MPS_SDPA_LOG_FALLBACKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine, "_thresholds", {})
    monkeypatch.setattr(calibration, "_in_use", {})
    monkeypatch.setattr(calibration, "_disturbed", {})
    monkeypatch.setattr(calibration, "_looked", set())
    monkeypatch.setattr(calibration, "_prepared", set())
    _forget()
    yield
    mps_sdpa.set_default_backend("auto")
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    environment.cache_clear()
    engine.forget_options()
    mps_sdpa.reset_call_stats()
    mps_sdpa.reset_fallback_stats()
