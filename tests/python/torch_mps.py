# SPDX-License-Identifier: MIT
"""A stand-in for `torch.mps.compile_shader`: marshals as torch does, computes in the simulator.

`apple_gpu()` puts it in place and lets the CPU's tensors pose as an Apple GPU's.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mps_sdpa import _core, api, calibration, devices, mps

_LIBRARY = Path(__file__).parents[2] / "build/dev/tests/torch_mps/libtorch_mps_simulator.so"
_MOST_ARGUMENTS, _MOST_INLINE_BYTES, _MESSAGE_BYTES = 31, 4096, 4096

#: torch's `arg_casts`, by struct's letters.
_CASTS = {"fp16": "e", "int32": "i", "int16": "h", "int8": "b", "uint8": "B"}


class Argument(ctypes.Structure):
    _fields_ = (
        ("is_buffer", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
    )


@functools.cache
def simulator() -> ctypes.CDLL:
    """The simulator with our kernels in it."""
    library = ctypes.CDLL(str(_LIBRARY))
    text, size = ctypes.c_char_p, ctypes.c_size_t
    library.torch_mps_compile.argtypes = [text, text, size, text, size]
    library.torch_mps_compile.restype = ctypes.c_bool
    extent = ctypes.POINTER(ctypes.c_uint32)
    library.torch_mps_launch.argtypes = [
        text, ctypes.POINTER(Argument), ctypes.c_int32, extent, extent, text, size,
    ]  # fmt: skip
    library.torch_mps_launch.restype = ctypes.c_bool
    return library


def pack(value: Any, cast: str | None = None) -> bytes:
    """A number or list of numbers as torch passes it: 64-bit integers, 32-bit floats."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise RuntimeError("Empty list/tuple can not be an argument to metal kernel")
    if isinstance(values[0], bool) or not isinstance(values[0], (int, float)):
        raise RuntimeError("Unsupported argument type")
    letter = "q" if isinstance(values[0], int) else "f"
    if letter == "q" and not all(type(each) is int for each in values):
        raise RuntimeError("Unable to cast Python instance to C++ type 'std::vector<int64_t>'")
    if cast is not None and cast not in _CASTS:
        raise RuntimeError(f"Unsupported cast instruction {cast}")
    return struct.pack(f"<{len(values)}{_CASTS[cast] if cast else letter}", *values)


class Binder:
    """The argument table of one launch; keeps alive what it points to."""

    def __init__(self, arguments: tuple[Any, ...], casts: Any) -> None:
        if len(arguments) > _MOST_ARGUMENTS:
            raise RuntimeError(f"{len(arguments)} arguments; Metal has {_MOST_ARGUMENTS}")
        self.kept: list[Any] = []
        self.table = (Argument * len(arguments))()
        for index, value in enumerate(arguments):
            cast = casts.get(index) if isinstance(casts, dict) else casts
            self.table[index] = (
                self._tensor(value) if isinstance(value, Tensor) else self._bytes(pack(value, cast))
            )

    def _tensor(self, tensor: Tensor) -> Argument:
        """The whole rest of the storage: a buffer knows nothing of a tensor's shape."""
        if tensor.dtype == torch.float64:
            raise TypeError("Metal has no float64")
        self.kept.append(tensor)
        offset = tensor.storage_offset() * tensor.element_size()
        return Argument(1, tensor.data_ptr(), tensor.untyped_storage().nbytes() - offset)

    def _bytes(self, packed: bytes) -> Argument:
        if len(packed) > _MOST_INLINE_BYTES:
            raise RuntimeError(f"{len(packed)} inline bytes; Metal takes {_MOST_INLINE_BYTES}")
        memory = ctypes.create_string_buffer(packed, len(packed))
        self.kept.append(memory)
        return Argument(0, ctypes.addressof(memory), len(packed))


def _extent(value: Any) -> tuple[int, ...]:
    extent = (value,) if isinstance(value, int) else tuple(value)
    if not 0 < len(extent) < 4 or not all(type(each) is int and each > 0 for each in extent):
        raise RuntimeError(f"Number of threads is undefined or has wrong dimension: {value}")
    return extent


class Kernel:
    """What torch calls `_mps_MetalKernel`."""

    max_threads_per_threadgroup = 1024
    thread_execution_width = 32

    def __init__(self, name: str, gpu: Gpu) -> None:
        self.name, self.gpu = name, gpu
        self.max_threads_per_threadgroup = gpu.max_threads

    def __call__(
        self,
        *arguments: Any,
        threads: Any = None,
        group_size: Any = None,
        arg_casts: Any = None,
        error_buf_idx: int | None = None,
    ) -> None:
        binder = Binder(arguments, arg_casts)
        total, group = _extent(threads), _extent(group_size)
        if len(total) != len(group):
            raise RuntimeError("threads and group_size must have the same number of dimensions")
        size = functools.reduce(int.__mul__, group)
        if size > self.max_threads_per_threadgroup:
            limit = self.max_threads_per_threadgroup
            raise ValueError(f"Threadgroup size exceeds {limit} limit")
        self.gpu.launches.append(self.name)
        if self.gpu.computes:
            self._run(binder, total, group)

    def _run(self, binder: Binder, threads: tuple[int, ...], group: tuple[int, ...]) -> None:
        extents = [
            (ctypes.c_uint32 * 3)(*each, *[1] * (3 - len(each))) for each in (threads, group)
        ]
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        if not simulator().torch_mps_launch(
            self.name.encode(), binder.table, len(binder.table), *extents, message, _MESSAGE_BYTES
        ):
            raise AssertionError(f"{self.name}: {message.value.decode()}")


class Library:
    """What torch calls `_mps_ShaderLibrary`."""

    def __init__(self, name: str, gpu: Gpu) -> None:
        self._name, self._gpu = name, gpu

    def __dir__(self) -> list[str]:
        return [self._name]

    def __getattr__(self, name: str) -> Kernel:
        if name != self._name:
            raise RuntimeError(f"Failed to create function state object for: {name}")
        return Kernel(name, self._gpu)


class Gpu:
    """The GPU that is played: what it allows, and what it was asked to do."""

    def __init__(self, family: int = 9, cores: int = 1) -> None:
        self.device = _core.MetalDevice("m4", family, cores)
        self.max_threads = 1024
        self.compile_error: str | None = None
        self.computes = True
        self.compiled: list[str] = []
        self.launches: list[str] = []

    def compile_shader(self, source: str) -> Library:
        """torch.mps.compile_shader."""
        name = ctypes.create_string_buffer(256)
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        compiled = simulator().torch_mps_compile(
            source.encode(), name, 256, message, _MESSAGE_BYTES
        )
        if self.compile_error is not None or not compiled:
            raise SyntaxError(self.compile_error or message.value.decode())
        self.compiled.append(name.value.decode())
        return Library(name.value.decode(), self)


def _forget_kernels() -> None:
    mps._compiled.cache_clear()
    mps._usual_launcher.cache_clear()


@contextlib.contextmanager
def apple_gpu(gpu: Gpu | None = None) -> Iterator[Gpu]:
    """Inside, every tensor poses as an Apple GPU's, and torch.mps compiles for `gpu`."""
    gpu = gpu or Gpu()
    _forget_kernels()
    with (
        mock.patch.object(torch.mps, "compile_shader", gpu.compile_shader),
        mock.patch.object(mps, "find_device", lambda: (gpu.device, None)),
        mock.patch.object(devices, "kind", lambda tensor: "mps"),
        mock.patch.object(api, "_enter", lambda *arguments: None),  # the CPU's own door
        mock.patch.object(calibration, "_prepared", {"mps"}),
    ):
        yield gpu
    _forget_kernels()
