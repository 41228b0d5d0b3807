# SPDX-License-Identifier: MIT
"""Apple's MPSGraph on torch's GPU tensors.

`mpsgraph_zc` hands torch's own Metal buffers to a graph, with their storage offsets, and encodes it
on torch's own stream: nothing is copied and nobody waits. The stream is reached through functions
that torch exports, as its MPSStream.h and mps.h declare them, looked up at run time; that torch's
storage is a Metal buffer is tried once. Where either fails, the back end says so.

`mpsgraph` copies tensors to host memory, which waits for torch's stream, runs the library's own
back end there, and copies the results back.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mps_sdpa import _core

__all__ = ["NAMES", "backward", "drop_caches", "forward", "reason_against"]

NAMES = ("mpsgraph_zc", "mpsgraph")

#: Buffer and offset of a tensor; None for an absent one.
Place = tuple[int, int] | None

#: What the stream needs of torch, in the order of sdpa::metal::StreamFunctions.
_SYMBOLS = (
    "_ZN2at3mps19getCurrentMPSStreamEv",
    "_ZN2at3mps9MPSStream13commandBufferEv",
    "_ZN2at3mps9MPSStream19endKernelCoalescingEv",
    "_ZN5torch3mps18get_dispatch_queueEv",
)

#: The probe's elements, and how many come before the view that is looked at.
_PROBE, _PROBE_OFFSET = 64, 3


def _libraries() -> list[ctypes.CDLL]:
    folder = Path(torch.__file__).parent / "lib"
    found = [folder / f"libtorch_{part}.dylib" for part in ("cpu", "python")]
    return [ctypes.CDLL(str(path)) for path in found if path.exists()]


def _address(libraries: Sequence[ctypes.CDLL], symbol: str) -> int | None:
    for library in libraries:
        if function := getattr(library, symbol, None):
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


@functools.cache
def find_stream() -> tuple[tuple[int, ...] | None, str | None]:
    """The addresses of torch's stream functions, or which of them is missing."""
    libraries = _libraries()
    addresses = []
    for symbol in _SYMBOLS:
        if (address := _address(libraries, symbol)) is None:
            return None, f"torch {torch.__version__} does not export {symbol}."
        addresses.append(address)
    dispatch = _address([ctypes.CDLL(None)], "dispatch_sync_f")
    if dispatch is None:
        return None, "This system has no dispatch_sync_f."
    return (*addresses, dispatch), None


def place_of(tensor: Tensor) -> tuple[int, int]:
    """What torch says of a tensor's memory: its storage's pointer, and the offset in bytes."""
    offset = int(tensor.storage_offset()) * tensor.element_size()
    return tensor.untyped_storage().data_ptr(), offset


def _on_gpu(values: Tensor) -> Tensor:
    """A copy on the GPU that is there when this returns."""
    copied = values.to("mps")
    torch.mps.synchronize()
    return copied


@functools.cache
def _reason_against_buffers() -> str | None:
    """Whether a storage's pointer is the Metal buffer that its tensors lie in: tried on one."""
    values = torch.arange(_PROBE, dtype=torch.float32)
    probe = _on_gpu(values)[_PROBE_OFFSET:]
    pointer, offset = place_of(probe)
    return _core.graph_buffer_reason(pointer, offset, values[_PROBE_OFFSET:].numpy().tobytes())


@functools.cache
def _reason_against_zero_copy() -> str | None:
    if reason := _core.graph_reason():
        return reason
    return find_stream()[1] or _reason_against_buffers()


def reason_against(name: str) -> str | None:
    """Why a back end cannot be used on torch's tensors here; None if it can."""
    if name == "mpsgraph_zc":
        return _reason_against_zero_copy()
    return dict(_core.backends())["mpsgraph"]


def _unexpanded(tensor: Tensor) -> Tensor:
    """The tensor with the dimensions that it was expanded along as it was before."""
    for dim in range(tensor.dim()):
        if tensor.stride(dim) == 0 and tensor.size(dim) > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _dense(tensor: Tensor | None, batch: Sequence[int]) -> Tensor | None:
    """The tensor with the batch of the call, its elements one after the other."""
    if tensor is None:
        return None
    if tensor.dim() > 3:
        tensor = tensor.expand(*batch[-(tensor.dim() - 3) :], *tensor.shape[-3:])
    return tensor.contiguous()


def _dense_inputs(inputs: Sequence[Any], out: Tensor) -> list[Tensor | None]:
    """The five inputs as graphs can read them in place; what lies so is not copied."""
    batch = out.shape[:-3]
    query, key, value, mask, sinks = inputs
    dense = [_dense(tensor, batch) for tensor in (query, key, value)]
    if mask is not None:
        mask = _unexpanded(mask).contiguous().expand(mask.shape)
    return [*dense, mask, None if sinks is None else sinks.contiguous()]


def _places(tensors: Sequence[Tensor | None]) -> tuple[Place, ...]:
    return tuple(None if tensor is None else place_of(tensor) for tensor in tensors)


def _dense_result(tensor: Tensor | None) -> Tensor | None:
    """The result itself where its elements lie one after the other, else room for them."""
    if tensor is None or _unexpanded(tensor).is_contiguous():
        return tensor
    room = torch.empty_like(_unexpanded(tensor), memory_format=torch.contiguous_format)
    return room.expand(tensor.shape)


def _copied_to_host(tensor: Tensor) -> Tensor:
    return tensor.cpu()


def _on_host(tensor: Any) -> Tensor | None:
    if not isinstance(tensor, Tensor):
        return None
    return _copied_to_host(_unexpanded(tensor)).expand(tensor.shape)


def _write_back(results: Sequence[Tensor | None], tensors: Sequence[Tensor | None]) -> None:
    """Copies results to where they belong, unless they are there."""
    for result, tensor in zip(results, tensors, strict=True):
        if result is not None and tensor is not None and result is not tensor:
            _unexpanded(tensor).copy_(_unexpanded(result))


def forward(
    name: str, inputs: Sequence[Any], out: Tensor, lse: Tensor | None, options: _core.Options
) -> None:
    """Computes `out` (and `lse`) on the back end of that name."""
    places, stream = None, None
    if name == "mpsgraph_zc":
        tensors, results = _dense_inputs(inputs, out), (_dense_result(out), _dense_result(lse))
        places, stream = _places([*tensors, *results]), find_stream()[0]
    else:
        tensors, results = [*map(_on_host, inputs)], (_on_host(out), _on_host(lse))
    assert results[0] is not None
    _core.graph_forward(tuple(tensors), results[0], results[1], options, places, stream)
    _write_back(results, (out, lse))


def backward(
    name: str,
    saved: Sequence[Any],
    grads_of_results: tuple[Tensor, Tensor | None],
    gradients: Sequence[Tensor | None],
    options: _core.Options,
) -> None:
    """Computes the gradients that are there on the back end of that name. `saved` has the five
    inputs, out and lse."""
    grad_out, grad_lse = grads_of_results
    places, stream = None, None
    if name == "mpsgraph_zc":
        read = [
            *_dense_inputs(saved[:5], grad_out),
            *saved[5:],
            grad_out.contiguous(),
            None if grad_lse is None else grad_lse.contiguous(),
        ]
        results = [*map(_dense_result, gradients)]
        places, stream = _places([*read, *results]), find_stream()[0]
    else:
        read = [*map(_on_host, (*saved, grad_out, grad_lse))]
        results = [*map(_on_host, gradients)]
    _core.graph_backward((*read, *results), options, places, stream)
    _write_back(results, gradients)


def drop_caches() -> None:
    """Gives back what graphs and torch keep on the GPU: for when memory runs out."""
    _core.drop_graphs()
    empty: Callable[[], None] | None = getattr(torch.mps, "empty_cache", None)
    if empty is not None and torch.backends.mps.is_available():
        empty()
