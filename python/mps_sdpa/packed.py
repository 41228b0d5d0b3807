# SPDX-License-Identifier: MIT
"""Packed sequences: one problem each, without padding, all of them in one call of the library."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mps_sdpa import composite, stats
from mps_sdpa._core import backward_packed, forward_packed
from mps_sdpa.autograd import AGAIN, as_kernels_read, differentiate
from mps_sdpa.engine import account, attend, is_ordinary, options_for
from mps_sdpa.settings import Settings
from mps_sdpa.torch_ops import autocast_inputs

__all__ = ["attend_packed", "packed_gradients"]

#: The starts of the sequences, in the queries and in the keys.
Starts = tuple[list[int], list[int]]

#: query, key, value, sinks, settings -> output and log-sum-exp of one sequence, [heads, len, dim].
OneSequence = Callable[[Tensor, Tensor, Tensor, Tensor | None, Settings], tuple[Tensor, Any]]


def _sequences(
    q: Tensor, k: Tensor, v: Tensor, starts: Starts, settings: Settings
) -> Iterator[tuple[Tensor, Tensor, Tensor, Settings]]:
    """Each sequence as views [heads, len, dim]. Its dropout has an offset of its own."""
    query, key, value = (tensor.transpose(0, 1) for tensor in (q, k, v))
    ranges = zip(*(itertools.pairwise(start) for start in starts), strict=True)
    for index, ((q_from, q_to), (k_from, k_to)) in enumerate(ranges):
        own = settings
        if settings.dropout > 0:
            own = dataclasses.replace(settings, offset=(settings.offset + index) & 0xFFFFFFFF)
        yield query[:, q_from:q_to], key[:, k_from:k_to], value[:, k_from:k_to], own


def _one_by_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    starts: Starts,
    settings: Settings,
    attend_one: OneSequence,
) -> tuple[Tensor, Any]:
    """A call of `attend_one` for each sequence."""
    outputs, sums = [], []
    for query, key, value, own in _sequences(q, k, v, starts, settings):
        out, lse = attend_one(query, key, value, sinks, own)
        outputs.append(out.transpose(0, 1))
        sums.append(lse)
    if not outputs:
        return q.new_empty(0, q.size(1), v.size(2)), q.new_empty(q.size(1), 0)
    return torch.cat(outputs), None if sums[0] is None else torch.cat(sums, -1)


def _formula(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    return composite.attention(query, key, value, None, sinks, settings)


def packed_gradients(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    results: tuple[Tensor, Tensor],
    starts: Starts,
    settings: Settings,
    wanted: tuple[bool, ...],
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of query, key, value and sinks; where they shall be differentiable, by formula."""
    if torch.is_grad_enabled():
        found = _one_by_one(*inputs, starts, settings, _formula)
        stats.record_fallback(AGAIN)
        return differentiate(found, inputs, wanted, grad_out, grad_lse)
    bits = sum(1 << index for index, asked in enumerate(wanted) if asked)
    options = options_for(settings)
    grad_out, grad_lse = as_kernels_read(grad_out, grad_lse)
    gradients = backward_packed((*inputs, *results), *starts, grad_out, grad_lse, options, bits)
    sinks = inputs[3]
    if gradients[3] is not None and sinks is not None:
        gradients[3] = gradients[3].to(sinks.dtype)
    return gradients


class PackedFunction(Function):
    """(q, k, v, sinks, starts, settings, want_lse) -> (out, lse, choice)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        starts: Starts,
        settings: Settings,
        want_lse: bool,
    ) -> tuple[Tensor, Tensor | None, Any]:
        found = forward_packed(q, k, v, sinks, *starts, options_for(settings), True)
        assert found is not None
        out, lse, choice = found
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.starts, ctx.settings = starts, settings
        ctx.materialize_grads = False
        return out, lse if want_lse else None, choice

    @staticmethod
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, *_: object
    ) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        wanted = ctx.needs_input_grad[:4]
        gradients = packed_gradients(
            (q, k, v, sinks), (out, lse), ctx.starts, ctx.settings, wanted, grad_out, grad_lse
        )
        return (*gradients, None, None, None)


#: `PackedFunction.apply`, typed.
_apply: Callable[..., Any] = PackedFunction.apply


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    starts: Starts,
    settings: Settings,
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """The output [total, heads, v_dim], and the log-sum-exp [heads, total] if wanted."""
    q, k, v = autocast_inputs(q, k, v)
    inputs = (q, k, v, sinks)
    with torch.autocast("cpu", enabled=False):
        if len(starts[0]) == 1 or not is_ordinary(inputs, settings):

            def attend_one(
                query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, own: Settings
            ) -> tuple[Tensor, Tensor | None]:
                return attend(query, key, value, None, sinks, own, want_lse)

            return _one_by_one(*inputs, starts, settings, attend_one)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
            out, lse, choice = _apply(*inputs, starts, settings, want_lse)
        else:
            found = forward_packed(*inputs, *starts, options_for(settings), want_lse)
            assert found is not None
            out, lse, choice = found
    if choice is not None:
        account(choice, settings, (q, k, v, None, sinks), (out, lse), want_lse)
    return out, lse
