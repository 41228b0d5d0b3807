# SPDX-License-Identifier: MIT
"""The gradient of attention for autograd: only what is asked for, and again differentiable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mps_sdpa import _core, composite, launchers, stats
from mps_sdpa.settings import Settings

__all__ = [
    "AttentionFunction",
    "PlainFunction",
    "apply",
    "apply_plain",
    "differentiable",
    "differentiate",
    "fused_gradients",
]

#: Why a gradient came from the formula: kernels give one that autograd cannot differentiate.
AGAIN = "gradient that is differentiated again"


class AttentionFunction(Function):
    """(query, key, value, mask, sinks, options, settings, want_lse) -> (out, lse, choice).

    `settings` says the same as `options`, for the formula that derivatives of derivatives use.
    Where `out` is None, torch's own function is to run.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        sinks: Tensor | None,
        options: _core.Options,
        settings: Settings,
        want_lse: bool,
    ) -> tuple[Tensor | None, Tensor | None, _core.Choice | None]:
        found = launchers.forward(query, key, value, mask, sinks, options, True)
        if found is None:
            return None, None, None
        out, lse, choice = found
        ctx.to_save = (query, key, value, mask, sinks, out, lse)
        ctx.options, ctx.settings, ctx.want_lse = options, settings, want_lse
        ctx.materialize_grads = False
        return out, lse if want_lse else None, choice

    @staticmethod
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, *_: object
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:5]
        if grad_out is None:
            grad_out = torch.zeros_like(saved[5])
        if torch.is_grad_enabled():
            gradients = differentiable(saved[:5], wanted, ctx.settings, grad_out, grad_lse)
        else:
            gradients = fused_gradients(
                saved, wanted, (ctx.options, ctx.settings), grad_out, grad_lse
            )
        return (*gradients, None, None, None)


class PlainFunction(Function):
    """(query, key, value, mask, (options, settings)) -> out: the cheap way, without sinks or LSE.

    Its forward is compiled. Where the choice is remarkable, the result is (out, None, choice).
    """

    forward = staticmethod(_core.forward_saving)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out = ctx.saved_tensors
        options, settings, lse = ctx.call
        asked = ctx.needs_input_grad
        wanted = (asked[0], asked[1], asked[2], asked[3], False)
        if torch.is_grad_enabled():
            inputs = (query, key, value, mask, None)
            gradients = differentiable(inputs, wanted, settings, grad_out, None)
        else:
            saved = (query, key, value, mask, None, out, lse)
            gradients = fused_gradients(saved, wanted, (options, settings), grad_out, None)
        return (*gradients[:4], None)


class PlainFunctionBackward(PlainFunction._backward_cls):  # type: ignore[misc, name-defined]
    """What autograd calls in the backward pass: compiled too, where nothing has to be summed.

    torch's own looks several attributes up before it comes to `backward`; on a tiny problem that
    and a dictionary for one attribute are a tenth of the time.
    """

    __slots__ = ("call",)

    apply = _core.backward_saved  # or PlainFunction.backward


PlainFunction._backward_cls = PlainFunctionBackward
#: `PlainFunction.apply` without its check for transforms, which the caller has made.
apply_plain: Callable[..., Any] = super(Function, PlainFunction).apply
#: `AttentionFunction.apply`, typed.
apply: Callable[..., Any] = AttentionFunction.apply


def fused_gradients(
    saved: tuple[Tensor | _core.SavedLse | None, ...],
    wanted: tuple[bool, ...],
    call: tuple[_core.Options, Settings],
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    """The kernel's gradients, summed over what was broadcast, in the inputs' dtypes; those of the
    formula where no kernel can."""
    bits = sum(1 << index for index, asked in enumerate(wanted) if asked)
    options, settings = call
    grad_out, grad_lse = as_kernels_read(grad_out, grad_lse)
    gradients, choice = launchers.backward(saved, grad_out, grad_lse, options, bits)
    if choice is not None and choice.backend is None:
        stats.record_fallback("; ".join(f"{name}: {reason}" for name, reason in choice.rejected))
        return _gradients_of_formula(saved[:5], wanted, settings, grad_out, grad_lse)
    for index, gradient in enumerate(gradients):
        if gradient is None:
            continue
        tensor = saved[index]
        assert isinstance(tensor, Tensor)
        if gradient.shape != tensor.shape:
            gradient = gradient.sum_to_size(tensor.shape)
        if gradient.dtype != tensor.dtype:
            gradient = gradient.to(tensor.dtype)
        gradients[index] = gradient
    return gradients


def as_kernels_read(grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of results with their values in memory: that of a lazily negated tensor holds the
    negative."""
    return grad_out.resolve_neg(), None if grad_lse is None else grad_lse.resolve_neg()


def _gradients_of_formula(
    inputs: tuple[Any, ...],
    wanted: tuple[bool, ...],
    settings: Settings,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    leaves: tuple[Any, ...] = tuple(
        None if tensor is None else tensor.detach().requires_grad_(asked)
        for tensor, asked in zip(inputs, wanted, strict=True)
    )
    query, key, value, mask, sinks = leaves
    with torch.enable_grad():
        results = composite.attention(query, key, value, mask, sinks, settings)
        found = differentiate(results, leaves, wanted, grad_out, grad_lse)
    return [None if gradient is None else gradient.detach() for gradient in found]


def differentiable(
    inputs: tuple[Tensor | None, ...],
    wanted: Sequence[bool],
    settings: Settings,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    """The gradients as a formula that autograd can differentiate again; a fallback."""
    query, key, value, mask, sinks = inputs
    assert query is not None and key is not None and value is not None
    results = composite.attention(query, key, value, mask, sinks, settings)
    found = differentiate(results, inputs, wanted, grad_out, grad_lse)
    stats.record_fallback(AGAIN)
    return found


def differentiate(
    results: tuple[Tensor, Tensor],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of the output and the log-sum-exp that a formula gave for `inputs`."""
    out, lse = results
    asked = [t for t, is_wanted in zip(inputs, wanted, strict=True) if is_wanted and t is not None]
    outputs, grads = [out], [grad_out]
    if grad_lse is not None:
        outputs.append(lse)
        grads.append(grad_lse)
    found = iter(torch.autograd.grad(outputs, asked, grads, create_graph=True, allow_unused=True))
    return [next(found) if is_wanted else None for is_wanted in wanted]
