# SPDX-License-Identifier: MIT
"""Packed sequences as operators of torch's dispatcher, for compiled graphs and fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mps_sdpa.settings import Settings
from mps_sdpa.torch_ops import (
    autocast_inputs,
    is_differentiated_again,
    seed_tensor,
    settings_of,
)

__all__ = ["attend_packed_through_dispatcher"]

_register_fake: Callable[..., Any] = torch.library.register_fake

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? seed, Tensor cu_q, Tensor cu_k"
_OPTIONS = (
    "SymInt max_q, SymInt max_k, float? scale, int causal, int window_left, int window_right, "
    "float softcap, float dropout, str backend"
)

_library: Any = torch.library.Library("mps_sdpa", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(f"varlen_attention({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor)")
_library.define(
    f"varlen_attention_backward({_INPUTS}, Tensor out, Tensor lse, Tensor grad_out, "
    f"Tensor? grad_lse, bool[] wanted, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    seed: Tensor | None,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    from mps_sdpa.arguments import check_packing
    from mps_sdpa.packed import attend_packed

    starts = check_packing(q, k, v, (cu_q, cu_k), (max_q, max_k))
    with torch.no_grad():
        settings = settings_of(options, seed)
        out, lse = attend_packed(q, k, v, sinks, starts, settings, want_lse=True)
    assert lse is not None
    return out, lse


def _sums(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    out = q.new_empty(q.size(0), q.size(1), v.size(2))
    return out, q.new_empty(q.size(1), q.size(0), dtype=_sums(q))


def _gradients(
    inputs: tuple[Any, ...],
    results: tuple[Tensor, Tensor],
    wanted: list[bool],
    options: tuple[Any, ...],
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    """`inputs` are those of the operator; as a formula where gradients are differentiated."""
    from mps_sdpa.packed import packed_gradients

    q, k, v, sinks, seed, cu_q, cu_k = inputs
    starts = (cu_q.tolist(), cu_k.tolist())
    settings = settings_of((*options[2:-1], "auto"), seed)
    tensors = (q, k, v, sinks)
    return packed_gradients(tensors, results, starts, settings, tuple(wanted), grad_out, grad_lse)


def _backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, (out, lse, grad_out, grad_lse, wanted) = arguments[:7], arguments[7:12]
    with torch.no_grad():
        found = _gradients(inputs, (out, lse), wanted, arguments[12:], grad_out, grad_lse)
    return tuple(out.new_empty(0) if each is None else each for each in found)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    wanted = arguments[11]
    return tuple(
        tensor.new_empty(tensor.shape)
        if asked and tensor is not None
        else arguments[0].new_empty(0)
        for tensor, asked in zip(arguments[:4], wanted, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.options = inputs[7:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    *inputs, out, lse = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:4])
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    nothing = [None] * (3 + len(ctx.options))
    if is_differentiated_again(inputs[:4], wanted):
        again = _gradients(tuple(inputs), (out, lse), wanted, ctx.options, grad_out, grad_lse)
        return (*again, *nothing)
    found = torch.ops.mps_sdpa.varlen_attention_backward(
        *inputs, out, lse, grad_out, grad_lse, wanted, *ctx.options
    )
    gradients = [each if asked else None for each, asked in zip(found, wanted, strict=True)]
    return (*gradients, *nothing)


_register_fake("mps_sdpa::varlen_attention", _forward_fake, lib=_library)
_register_fake("mps_sdpa::varlen_attention_backward", _backward_fake, lib=_library)
for _device in ("CPU", "MPS"):
    _library.impl("varlen_attention", _forward_kernel, _device)
    _library.impl("varlen_attention_backward", _backward_kernel, _device)
torch.library.register_autograd(
    "mps_sdpa::varlen_attention", _backward, setup_context=_setup_context, lib=_library
)


def attend_packed_through_dispatcher(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    packing: tuple[Tensor, Tensor, int, int],
    settings: Settings,
    seed: int | None,
) -> tuple[Tensor, Tensor]:
    """One call of the operator: the output and the log-sum-exp."""
    q, k, v = autocast_inputs(q, k, v)
    cu_q, cu_k, max_q, max_k = packing
    drawn = seed_tensor(settings.dropout, seed, 0)
    options = (
        settings.scale,
        int(settings.causal),
        *settings.window,
        settings.softcap,
        settings.dropout,
        settings.backend,
    )
    operator: Callable[..., Any] = torch.ops.mps_sdpa.varlen_attention
    out, lse = operator(q, k, v, sinks, drawn, cu_q, cu_k, max_q, max_k, *options)
    return out, lse
