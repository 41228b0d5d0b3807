# SPDX-License-Identifier: MIT
"""A fake Mac under torch: MPSGraph, torch's stream, and Metal buffers over the CPU's tensors.

Importing this makes the module find the fake as it finds Apple's frameworks, for the whole process:
only a process of its own may do so (test_mpsgraph.py starts one). `torch_on_mac()` lets the CPU's
tensors pose as an Apple GPU's, with their storages as Metal buffers.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from mps_sdpa import _core, api, calibration, devices, graphs, mps, stats

ROOT = Path(__file__).parents[2] / "build/dev/tests/torch_mps/fake_mac"
_core.use_apple_root(str(ROOT))

_LIBRARY = ctypes.CDLL(str(ROOT / "usr/lib/libobjc.A.dylib"))
_LIBRARY.fake_buffer.restype = ctypes.c_void_p
_LIBRARY.fake_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBRARY.fake_release.argtypes = [ctypes.c_void_p]
_LIBRARY.fake_limit_memory.argtypes = [ctypes.c_size_t]
_LIBRARY.fake_fail_graphs.argtypes = [ctypes.c_bool]
_FUNCTIONS = (
    "current_stream",
    "command_buffer",
    "end_coalescing",
    "dispatch_queue",
    "dispatch_sync",
)


def stream() -> tuple[int, ...]:
    """The addresses of the stream's functions, as `graphs.find_stream` finds torch's."""
    functions = (getattr(_LIBRARY, f"fake_{name}") for name in _FUNCTIONS)
    return tuple(ctypes.cast(each, ctypes.c_void_p).value or 0 for each in functions)


def limit_memory(size: int) -> None:
    """All the memory that the GPU has; -1: as much as is asked for."""
    _LIBRARY.fake_limit_memory(ctypes.c_size_t(size).value)


def fail_graphs(fail: bool) -> None:
    """Whether MPSGraph compiles nothing."""
    _LIBRARY.fake_fail_graphs(fail)


def compiled_graphs() -> int:
    """How many graphs were compiled so far."""
    return int(_LIBRARY.fake_graphs())


def synchronize() -> None:
    """torch.mps.synchronize."""
    _LIBRARY.fake_synchronize()


def mistakes() -> str:
    """What the fake noted, one a line."""
    text = ctypes.create_string_buffer(1 << 16)
    _LIBRARY.fake_mistakes(text, len(text))
    return text.value.decode()


class Buffers:
    """A Metal buffer for every storage that is asked for."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.kept: list[Tensor] = []

    def place_of(self, tensor: Tensor) -> tuple[int, int]:
        """Buffer and offset of a tensor, as torch on a Mac has them."""
        storage = tensor.untyped_storage()
        self.kept.append(tensor)
        self.made.append(_LIBRARY.fake_buffer(storage.data_ptr(), storage.nbytes()))
        return self.made[-1], tensor.storage_offset() * tensor.element_size()

    def release(self) -> None:
        """Forgets all buffers."""
        for buffer in self.made:
            _LIBRARY.fake_release(buffer)


def no_mistakes() -> Iterator[None]:
    """For a fixture: counters and faults start afresh, and the fake has noted nothing after."""
    stats.reset_fallback_stats()
    stats.reset_call_stats()
    yield
    limit_memory(-1)
    fail_graphs(False)
    assert mistakes() == ""


def _waiting(run: Callable[..., None]) -> Callable[..., None]:
    """The same, and the GPU is done when it returns: nothing else here waits for it."""

    def run_and_wait(*arguments: Any) -> None:
        run(*arguments)
        synchronize()

    return run_and_wait


def _forget() -> None:
    mps._usual_launcher.cache_clear()
    graphs._reason_against_zero_copy.cache_clear()
    graphs._reason_against_buffers.cache_clear()


def _memory_of(tensor: Tensor) -> tuple[int, int]:
    """What a torch says whose storages point to memory and not to a Metal buffer."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset() * tensor.element_size()


@contextlib.contextmanager
def torch_on_mac(missing_stream: str | None = None, has_buffers: bool = True) -> Iterator[Buffers]:
    """Inside, every tensor poses as an Apple GPU's, and Metal kernels cannot be launched. Without
    `has_buffers` torch's storages are no Metal buffers, which the probe has to find out."""
    buffers = Buffers()
    _forget()
    found = (None, missing_stream) if missing_stream else (stream(), None)
    with (
        mock.patch.object(graphs, "find_stream", lambda: found),
        mock.patch.object(graphs, "forward", _waiting(graphs.forward)),
        mock.patch.object(graphs, "backward", _waiting(graphs.backward)),
        mock.patch.object(graphs, "_on_gpu", Tensor.clone),
        mock.patch.object(graphs, "_copied_to_host", Tensor.clone),
        mock.patch.object(graphs, "place_of", buffers.place_of if has_buffers else _memory_of),
        mock.patch.object(mps, "reason_against", lambda: "Metal kernels are not to be used here."),
        mock.patch.object(devices, "kind", lambda tensor: "mps"),
        mock.patch.object(api, "_enter", lambda *arguments: None),
        mock.patch.object(calibration, "_prepared", {"mps"}),
    ):
        yield buffers
    buffers.release()
    _forget()


def buffer_over(tensor: Tensor) -> int:
    """A Metal buffer over a tensor's storage."""
    storage = tensor.untyped_storage()
    return int(_LIBRARY.fake_buffer(storage.data_ptr(), storage.nbytes()))
