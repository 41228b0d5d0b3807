# SPDX-License-Identifier: MIT
"""Counters: calls per back end, and fallbacks per reason. A call counts after it succeeded."""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
from collections.abc import Iterator

from mps_sdpa import _core
from mps_sdpa.environment import environment

__all__ = [
    "get_call_stats",
    "get_fallback_stats",
    "print_call_stats",
    "print_fallback_stats",
    "record_fallback",
    "record_stock_call",
    "reset_call_stats",
    "reset_fallback_stats",
    "uncounted",
]

_log = logging.getLogger("mps_sdpa.fallback")
_lock = threading.Lock()
_stock_calls = 0
_uncounted: collections.Counter[str] = collections.Counter()
#: Where fallbacks go instead of being counted, while `uncounted` is entered.
_aside: list[str] | None = None
_fallbacks: collections.Counter[str] = collections.Counter()


def record_stock_call() -> None:
    """Counts a call of torch's own function."""
    global _stock_calls
    with _lock:
        _stock_calls += 1


def record_fallback(reason: str) -> None:
    """Counts and logs a call that another back end did than the one meant for it."""
    with _lock:
        if _aside is not None:
            _aside.append(reason)
            return
        _fallbacks[reason] += 1
    _log.log(environment().fallback_level, "fallback: %s", reason)


def _all_calls() -> collections.Counter[str]:
    return collections.Counter({**_core.call_counts(), "stock": _stock_calls})


@contextlib.contextmanager
def uncounted() -> Iterator[list[str]]:
    """Calls made inside are not the user's and do not count; their fallbacks come into the list."""
    global _aside
    before = _all_calls()
    fallbacks: list[str] = []
    _aside = fallbacks
    try:
        yield fallbacks
    finally:
        _aside = None
        _uncounted.update(_all_calls() - before)


def get_call_stats() -> dict[str, int]:
    """Calls per back end since the start or the last reset; those with none are left out."""
    return dict(_all_calls() - _uncounted)


def get_fallback_stats() -> dict[str, int]:
    """Fallbacks per reason since the start or the last reset."""
    with _lock:
        return dict(_fallbacks)


def reset_call_stats() -> None:
    """Sets all call counters to zero."""
    global _stock_calls
    with _lock:
        _stock_calls = 0
    _uncounted.clear()
    _core.reset_call_counts()


def reset_fallback_stats() -> None:
    """Forgets all fallbacks."""
    with _lock:
        _fallbacks.clear()


def _print(title: str, tag: str, counts: dict[str, int]) -> None:
    print(f"{title} {tag}".rstrip() + ":")
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"  {count:8d}  {name}")
    if not counts:
        print("  none")


def print_call_stats(tag: str = "") -> None:
    """Prints the calls per back end, most first."""
    _print("attention calls", tag, get_call_stats())


def print_fallback_stats(tag: str = "") -> None:
    """Prints the fallbacks per reason, most first."""
    _print("attention fallbacks", tag, get_fallback_stats())
