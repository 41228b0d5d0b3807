# SPDX-License-Identifier: MIT
"""The back ends by name: which there are, which can be used here, and what `auto` means."""

from __future__ import annotations

import threading
from typing import Any

import torch

from mps_sdpa import _core, graphs, mps
from mps_sdpa.environment import environment

__all__ = [
    "NAMES",
    "available_backends",
    "backend_status",
    "check_backend",
    "default_backend",
    "print_backend_banner",
    "reason_against",
    "set_default_backend",
]

#: Every back end, in order of preference.
NAMES = ("metal", "mpsgraph_zc", "mpsgraph", "metal_proto", "cpu", "stock")

_chosen_default: str | None = None
_banners_shown: set[str] = set()
_banner_lock = threading.Lock()


def reason_against(name: str) -> str | None:
    """Why a back end cannot be used on this machine; None if it can."""
    if name == "stock":
        return None
    if name in ("metal", "metal_proto"):
        return mps.reason_against()
    if name in graphs.NAMES:
        return graphs.reason_against(name)
    return dict(_core.backends())[name]


def _check_name(name: str) -> None:
    if name not in NAMES and name != "auto":
        raise KeyError(f"unknown back end {name!r}; known are auto, {', '.join(NAMES)}")


def check_backend(name: str) -> None:
    """KeyError for an unknown name, RuntimeError with the reason for one not available here."""
    _check_name(name)
    if name != "auto" and (reason := reason_against(name)):
        raise RuntimeError(f"back end {name!r} is not available: {reason}")


def available_backends() -> list[str]:
    """The names of the back ends that can be used here, in order of preference."""
    return [name for name in NAMES if reason_against(name) is None]


def default_backend() -> str:
    """What `backend="auto"` means: set_default_backend's, else MPS_SDPA_BACKEND's, else "auto"."""
    return environment().backend if _chosen_default is None else _chosen_default


def set_default_backend(name: str) -> None:
    """Makes `backend="auto"` mean `name`; "auto" takes that back."""
    from mps_sdpa import engine

    global _chosen_default
    check_backend(name)
    _chosen_default = None if name == "auto" else name
    engine.forget_options()


def _default_device() -> str:
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _first_on(device: str) -> str:
    candidates = ("cpu",) if device == "cpu" else NAMES[:3] if device == "mps" else ()
    return next((name for name in candidates if reason_against(name) is None), "stock")


def backend_status(
    backend: str = "auto", device: str | torch.device | None = None
) -> dict[str, Any]:
    """Which back end a request would get on a device, and why the others are not to be had."""
    from mps_sdpa import __version__

    _check_name(backend)
    kind = torch.device(device if device is not None else _default_device()).type
    wanted = default_backend() if backend == "auto" else backend
    usable = wanted != "auto" and reason_against(wanted) is None
    picked = wanted if usable else _first_on(kind)
    return {
        "requested_backend": backend,
        "picked": picked,
        "active": picked,
        "device": kind,
        "available": available_backends(),
        "unavailable": {name: why for name in NAMES if (why := reason_against(name))},
        "torch_version": torch.__version__,
        "mps_sdpa_version": __version__,
    }


def _boxed(lines: list[str]) -> str:
    width = max(len(line) for line in lines)
    edge = "+" + "-" * (width + 2) + "+"
    return "\n".join([edge, *(f"| {line:<{width}} |" for line in lines), edge])


def print_backend_banner(
    backend: str = "auto",
    device: str | torch.device | None = None,
    tag: str = "",
    once: bool = True,
) -> None:
    """Prints `backend_status` in a box; with `once` a second time only if it says something new."""
    status = backend_status(backend, device)
    versions = f"mps-sdpa {status['mps_sdpa_version']}, torch {status['torch_version']}"
    text = _boxed(
        [
            f"{versions} {tag}".rstrip(),
            f"requested: {status['requested_backend']}   picked: {status['picked']}"
            f"   device: {status['device']}",
            f"available: {', '.join(status['available'])}",
            *(f"not {name}: {reason}" for name, reason in status["unavailable"].items()),
        ]
    )
    with _banner_lock:
        if once and text in _banners_shown:
            return
        _banners_shown.add(text)
    print(text)
