# SPDX-License-Identifier: MIT
"""Metal kernels on torch's own GPU tensors and stream, through `torch.mps.compile_shader`.

The library chooses and plans (`_core.metal_forward`); here its plans become launches. torch encodes
each launch behind whatever it encoded before, into the same command buffer, so that nothing is
copied and nobody waits. A parameter block goes as a list of integers and a list of floats, which
torch packs as 64-bit and 32-bit words: that is how sdpa/params.h lays them out.

A kernel that does not compile, or memory that is not to be had, is a reason against this launcher:
the next back end does the call, counted under that reason.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mps_sdpa import _core, graphs, stats

__all__ = ["backward", "explain", "forward", "reason_against"]

#: The roles of a plan's arguments, in the order of sdpa::metal::Role.
_ROLES = _core.metal_roles
_GRAD_OUT, _PARAMS, _SCALARS = map(_ROLES.index, ("grad_out", "params", "scalars"))

#: Kernels of this process that are kept compiled: about ten of them serve one model.
_KEPT_KERNELS = 256

#: What torch raises where a kernel does not compile, a launch is refused or memory runs out.
_FAILURES = (RuntimeError, SyntaxError, ValueError)

#: What a launch binds by role: tensors, or the lists of a parameter block.
Memory = list[Any]

#: Query, key, value, mask, sinks.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]

Found = TypeVar("Found")


class Kernel(NamedTuple):
    """A compiled kernel, and how many threads a threadgroup of it may have."""

    launch: Callable[..., None]
    max_threads: int


class TooManyThreads(Exception):
    """A compiled kernel allows fewer threads than its plan asks for: plan again with `limit`."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


@functools.lru_cache(maxsize=_KEPT_KERNELS)
def _compiled(name: str) -> Kernel | str:
    """The kernel, or why it does not compile: that is kept as well, for it takes as long."""
    try:
        compiled = getattr(torch.mps.compile_shader(_core.metal_source(name)), name)
    except _FAILURES as error:
        return str(error).strip() or type(error).__name__
    return Kernel(compiled, compiled.max_threads_per_threadgroup)


def _kernel(name: str) -> Kernel:
    found = _compiled(name)
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


@functools.cache
def find_device() -> tuple[_core.MetalDevice | None, str | None]:
    """The system's GPU, or why there is none."""
    return _core.metal_device()


def reason_against() -> str | None:
    """Why Metal kernels cannot run on torch's tensors here; None if they can."""
    device, reason = find_device()
    if device is None:
        return reason
    if not hasattr(torch.mps, "compile_shader"):
        return f"torch {torch.__version__} has no torch.mps.compile_shader; torch 2.8 has it."
    return None


#: What is against each launcher, by the name of its back end.
Against = dict[str, str | None]


def _usual_reasons() -> Against:
    return {
        "metal": reason_against(),
        **{name: graphs.reason_against(name) for name in graphs.NAMES},
    }


def _launcher(against: Against, max_threads: int | None = None) -> _core.MetalLauncher:
    device, _ = find_device()
    if device is None:
        device = _core.MetalDevice("no GPU", 0, 0)
    if max_threads is not None:
        device = _core.MetalDevice(device.name, device.family, device.cores)
        device.max_threads = max_threads
    return _core.MetalLauncher(device, *against.values())


@functools.cache
def _usual_launcher() -> _core.MetalLauncher:
    return _launcher(_usual_reasons())


def _kernels(launches: Sequence[_core.MetalLaunch]) -> list[Kernel]:
    """The kernels of a plan, compiled, and fit for the threads that it asks of them."""
    kernels = [_kernel(name) for name, _, _, _ in launches]
    needed = [group[0] * group[1] * group[2] for _, _, group, _ in launches]
    short = [
        kernel.max_threads
        for kernel, threads in zip(kernels, needed, strict=True)
        if kernel.max_threads < threads
    ]
    if short:
        raise TooManyThreads(min(short))
    return kernels


def _launch(piece: _core.MetalPiece, memory: Memory, device: torch.device) -> None:
    launches, scratch, params, scalars, offsets = piece
    kernels = _kernels(launches)
    if offsets:
        memory = memory.copy()
    for role, elements in offsets.items():
        whole = memory[role]
        memory[role] = whole.as_strided((1,), (1,), whole.storage_offset() + elements)
    for role, size in scratch:
        memory[role] = torch.empty(size, dtype=torch.uint8, device=device)
    memory[_PARAMS], memory[_SCALARS] = params, scalars
    for kernel, (_, threads, group, roles) in zip(kernels, launches, strict=True):
        kernel.launch(*[memory[role] for role in roles], threads=threads, group_size=group)


class LaunchError(Exception):
    """What made a back end give up a call, as one sentence."""

    def __init__(self, name: str, cause: Exception) -> None:
        super().__init__(f"The launch failed: {str(cause).strip() or type(cause).__name__}")
        self.name = name


@contextlib.contextmanager
def _launching(name: str | None) -> Iterator[None]:
    """Says whose launch it was that failed; the naive kernel's is Metal's."""
    try:
        yield
    except _FAILURES as error:
        known = name if name in graphs.NAMES else "metal"
        raise LaunchError(known, error) from error


def _until_one_works(
    attempt: Callable[[_core.MetalLauncher], Found], failures: dict[str, str] | None = None
) -> tuple[Found, dict[str, str]]:
    """Calls `attempt` until it succeeds, each time without the back ends that failed. Also returns
    what made those give up."""
    failures = failures or {}
    try:
        return _within_threads(attempt, failures), failures
    except LaunchError as error:
        if error.name in failures:
            raise
        graphs.drop_caches()
        return _until_one_works(attempt, {**failures, error.name: str(error)})


def _within_threads(
    attempt: Callable[[_core.MetalLauncher], Found],
    failures: dict[str, str],
    max_threads: int | None = None,
) -> Found:
    """Calls `attempt`, and again for fewer threads a group where a compiled kernel wants that."""
    usual = not failures and max_threads is None
    reasons: Against = {} if usual else {**_usual_reasons(), **failures}
    try:
        return attempt(_usual_launcher() if usual else _launcher(reasons, max_threads))
    except TooManyThreads as error:
        return _within_threads(attempt, failures, error.limit)


def _count(failures: dict[str, str]) -> None:
    """Counts fallbacks, where nobody else does by the choice that a call returns."""
    for failed, reason in failures.items():
        stats.record_fallback(f"{failed}: {reason}")


def explain(inputs: Inputs, options: _core.Options, pass_: str) -> tuple[str, str, _core.Choice]:
    """What `_core.explain` is for the CPU's tensors: problem, plan, choice."""
    return _core.metal_explain(inputs, options, pass_, _usual_launcher())


def _with_neighbouring_columns(tensor: Tensor) -> Tensor:
    """The tensor itself where a kernel can read it: masks apart, columns have to be neighbours."""
    if tensor.stride(-1) == 1 or tensor.size(-1) == 1:
        return tensor
    return tensor.contiguous()


def forward(
    inputs: Inputs, options: _core.Options, want_lse: bool
) -> tuple[Tensor | None, Tensor | None, _core.Choice | None]:
    """What `_core.forward` is for the CPU's tensors."""
    query, key, value = map(_with_neighbouring_columns, inputs[:3])
    inputs = (query, key, value, *inputs[3:])

    def attempt(launcher: _core.MetalLauncher) -> tuple[Any, ...]:
        out, lse, choice, name, pieces = _core.metal_forward(inputs, options, want_lse, launcher)
        with _launching(name):
            if name in graphs.NAMES:
                assert out is not None
                graphs.forward(name, inputs, out, lse, options)
            for piece in pieces:
                memory: Memory = [*inputs, out, lse, *[None] * (len(_ROLES) - _GRAD_OUT)]
                _launch(piece, memory, query.device)
        return out, lse, choice, name

    (out, lse, choice, name), failures = _until_one_works(attempt)
    if name is not None:
        _core.count_call(name)
    if choice is None:
        _count(failures)
    return out, lse, choice


def backward(
    saved: tuple[Any, ...],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    options: _core.Options,
    wanted: int,
) -> tuple[list[Tensor | None], _core.Choice | None]:
    """What `_core.backward` is for the CPU's tensors."""
    query, key, value = map(_with_neighbouring_columns, saved[:3])
    saved = (query, key, value, *saved[3:])
    grad_out = _with_neighbouring_columns(grad_out)

    def attempt(launcher: _core.MetalLauncher) -> tuple[Any, ...]:
        gradients, choice, name, pieces = _core.metal_backward(
            saved, grad_out, grad_lse, options, wanted, launcher
        )
        with _launching(name):
            if name in graphs.NAMES:
                graphs.backward(name, saved, (grad_out, grad_lse), gradients, options)
            for piece in pieces:
                memory: Memory = [*saved, grad_out, grad_lse, *gradients]
                memory += [None] * (len(_ROLES) - len(memory))
                _launch(piece, memory, query.device)
        return gradients, choice

    (gradients, choice), failures = _until_one_works(attempt)
    if choice is None or choice.backend is not None:
        _count(failures)
    return gradients, choice
