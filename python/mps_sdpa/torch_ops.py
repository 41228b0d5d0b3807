# SPDX-License-Identifier: MIT
"""Attention as operators of torch's dispatcher: for compiled graphs, fake tensors and transforms.

The eager path never comes here, since the dispatcher would cost more than a small problem. The
random seed is a tensor, so that a compiled graph draws a new one at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType

from mps_sdpa import devices
from mps_sdpa.settings import Causal, Settings

__all__ = [
    "attend_through_dispatcher",
    "autocast_inputs",
    "is_differentiated_again",
    "seed_tensor",
    "settings_of",
]

_broadcast: Callable[..., torch.Size] = torch.broadcast_shapes
_register_fake: Callable[..., Any] = torch.library.register_fake

_OPTIONS = (
    "float? scale, int causal, int window_left, int window_right, float softcap, float dropout, "
    "str backend"
)
_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? sinks, Tensor? seed"

_library: Any = torch.library.Library("mps_sdpa", "DEF")  # type: ignore[no-untyped-call]
_library.define(f"attention({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor)")
_library.define(
    f"attention_backward({_INPUTS}, Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, "
    f"bool[] wanted, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def settings_of(options: tuple[Any, ...], seed: Tensor | None) -> Settings:
    """The settings that an operator's options and its tensor of a seed say."""
    scale, causal, left, right, softcap, dropout, backend = options
    drawn, offset = (0, 0) if seed is None else seed.tolist()
    return Settings(
        scale=scale,
        causal=Causal(causal),
        window=(left, right),
        softcap=softcap,
        dropout=dropout,
        seed=drawn & 0xFFFFFFFFFFFFFFFF,
        offset=offset & 0xFFFFFFFF,
        backend=backend,
    )


def _forward_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    from mps_sdpa.engine import attend

    with torch.no_grad():
        settings = settings_of(options, seed)
        out, lse = attend(query, key, value, mask, sinks, settings, want_lse=True)
    assert lse is not None
    return out, lse


def _output_shape(query: Tensor, key: Tensor, value: Tensor) -> list[Any]:
    batch = _broadcast(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    rank = max(query.dim(), key.dim(), value.dim())
    heads = [tensor.size(-3) if tensor.dim() >= 3 else 1 for tensor in (query, key, value)]
    middle = [heads[0] if heads[0] != 1 else max(heads[1:])] if rank >= 3 else []
    return [*batch, *middle, query.size(-2), value.size(-1)]


def _empty(shape: list[Any], like: Tensor, layout: Tensor) -> Tensor:
    """A new tensor that lies as the compiled module allocates: heads inside rows where `layout`
    has them so."""
    if len(shape) == 4 and layout.dim() == 4 and layout.size(1) > 1:
        swapped = layout.stride(1) < layout.stride(2)
        if swapped:
            return like.new_empty([shape[0], shape[2], shape[1], shape[3]]).transpose(1, 2)
    return like.new_empty(shape)


def _lse_dtype(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


def _forward_fake(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = _output_shape(query, key, value)
    out = _empty(shape, query, query)
    return out, query.new_empty(shape[:-1], dtype=_lse_dtype(query))


def _backward_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    wanted: list[bool],
    *options: Any,
) -> tuple[Tensor, ...]:
    from mps_sdpa.autograd import fused_gradients
    from mps_sdpa.engine import options_for

    settings = settings_of((*options[:-1], "auto"), seed)
    saved = (query, key, value, mask, sinks, out, lse)
    call = (options_for(settings), settings)
    gradients = fused_gradients(saved, tuple(wanted), call, grad_out, grad_lse)
    return tuple(query.new_empty(0) if each is None else each for each in gradients)


def _backward_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    wanted: list[bool],
    *_: Any,
) -> tuple[Tensor, ...]:
    def gradient(tensor: Tensor | None, is_wanted: bool, lies_alike: bool) -> Tensor:
        if tensor is None or not is_wanted:
            return query.new_empty(0)
        if lies_alike and list(tensor.shape[:-3]) == list(out.shape[:-3]):
            return _empty(list(tensor.shape), tensor, tensor)
        return tensor.new_empty(tensor.shape)

    tensors = (query, key, value, mask, sinks)
    alike = (True, True, True, False, False)
    return tuple(map(gradient, tensors, wanted, alike))


_register_fake("mps_sdpa::attention", _forward_fake, lib=_library)
_register_fake("mps_sdpa::attention_backward", _backward_fake, lib=_library)
for _device in ("CPU", "MPS"):
    _library.impl("attention", _forward_kernel, _device)
    _library.impl("attention_backward", _backward_kernel, _device)


def is_differentiated_again(inputs: Sequence[Tensor | None], wanted: Sequence[bool]) -> bool:
    """Whether gradients are asked for with a graph of their own. torch.func always asks so."""
    return (
        torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and all(
            tensor is None or tensor.requires_grad
            for tensor, asked in zip(inputs, wanted, strict=True)
            if asked
        )
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.options = inputs[6:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    *inputs, out, lse = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:5])
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    found = torch.ops.mps_sdpa.attention_backward(
        *inputs, out, lse, grad_out, grad_lse, wanted, *ctx.options
    )
    gradients = [each if asked else None for each, asked in zip(found, wanted, strict=True)]
    return (*gradients, *[None] * (1 + len(ctx.options)))


def _differentiable_backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
) -> tuple[Any, ...]:
    """By the formula where the gradients shall have a graph of their own."""
    from mps_sdpa.autograd import differentiable

    *inputs, out, _ = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:5])
    if not is_differentiated_again(inputs[:5], wanted):
        return _backward(ctx, grad_out, grad_lse)
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    settings = settings_of(ctx.options, inputs[5])
    gradients = differentiable(tuple(inputs[:5]), wanted, settings, grad_out, grad_lse)
    return (*gradients, *[None] * (1 + len(ctx.options)))


torch.library.register_autograd(
    "mps_sdpa::attention", _differentiable_backward, setup_context=_setup_context, lib=_library
)


def _fold(tensor: Tensor | None, dim: int | None, size: int, rank: int) -> Tensor | None:
    """A tensor brought to `rank` with the mapped dimension in front, of `size` if unmapped."""
    if tensor is None:
        return None
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.reshape([moved.size(0), *[1] * (rank + 1 - moved.dim()), *moved.shape[1:]])


def _rank(tensors: Sequence[Tensor | None], dims: Sequence[int | None]) -> int:
    """The largest rank of the tensors without their mapped dimensions."""
    return max(
        tensor.dim() - (dim is not None)
        for tensor, dim in zip(tensors, dims, strict=True)
        if tensor is not None
    )


def _each_sample(
    operator: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]
) -> Any:
    """One call a sample."""
    found = [
        operator(
            *(
                each.select(dim, n) if isinstance(dim, int) else each
                for each, dim in zip(arguments, in_dims, strict=True)
            )
        )
        for n in range(info.batch_size)
    ]
    results = tuple(torch.stack(each) for each in zip(*found, strict=True))
    return results, tuple(0 for _ in results)


def _has_own(in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> bool:
    """Whether samples cannot share a call: each has sinks of its own, or the dropout of a call of
    its own, which is the same for all where vmap's randomness says so."""
    return in_dims[4] is not None or arguments[5] is not None


def _fold_all(
    tensors: Sequence[Tensor | None], dims: Sequence[int | None], size: int, rank: int
) -> list[Tensor | None]:
    return [_fold(tensor, dim, size, rank) for tensor, dim in zip(tensors, dims, strict=True)]


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
    """The mapped dimension becomes one more batch dimension."""
    if _has_own(in_dims, arguments):
        return _each_sample(torch.ops.mps_sdpa.attention, info, in_dims, arguments)
    rank = _rank(arguments[:4], in_dims[:4])
    folded = _fold_all(arguments[:4], in_dims[:4], info.batch_size, max(rank, 3))
    out, lse = torch.ops.mps_sdpa.attention(*folded, *arguments[4:])
    if rank < 3:
        out, lse = out.squeeze(1), lse.squeeze(1)
    return (out, lse), (0, 0)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
    """Each sample has its own gradients, of unmapped inputs too."""
    if _has_own(in_dims, arguments) or arguments[10][4]:
        return _each_sample(torch.ops.mps_sdpa.attention_backward, info, in_dims, arguments)
    size, rank = info.batch_size, max(_rank(arguments[:4], in_dims[:4]), 3)
    inputs = _fold_all(arguments[:4], in_dims[:4], size, rank)
    out, lse, grad_out, grad_lse = (
        _fold(tensor, dim, size, rank - is_lse)
        for tensor, dim, is_lse in zip(arguments[6:10], in_dims[6:10], (0, 1, 0, 1), strict=True)
    )
    found = torch.ops.mps_sdpa.attention_backward(
        *inputs, *arguments[4:6], out, lse, grad_out, grad_lse, *arguments[10:]
    )
    gradients = [
        gradient if tensor is None or not asked else gradient.reshape(size, *_sample(tensor, dim))
        for gradient, tensor, dim, asked in zip(
            found[:4], arguments[:4], in_dims[:4], arguments[10][:4], strict=True
        )
    ]
    mapped = [0 if asked else None for asked in arguments[10][:4]]
    return (*gradients, found[4]), (*mapped, None)


def _sample(tensor: Tensor, dim: int | None) -> list[int]:
    """The shape of one sample."""
    shape = list(tensor.shape)
    if dim is not None:
        del shape[dim]
    return shape


torch.library.register_vmap("mps_sdpa::attention", _vmap, lib=_library)
torch.library.register_vmap("mps_sdpa::attention_backward", _vmap_backward, lib=_library)


class TransformableFunction(torch.autograd.Function):
    """The operator for torch.func's transforms, which do not know a library's gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return torch.ops.mps_sdpa.attention(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:6], *output)
        ctx.options = inputs[6:]

    backward = staticmethod(_backward)


def autocast_inputs(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as autocast has torch's own function see them."""
    kind = devices.kind(query)
    if not torch.is_autocast_enabled(kind):
        return query, key, value
    dtype = torch.get_autocast_dtype(kind)
    return _cast(query, dtype), _cast(key, dtype), _cast(value, dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if eligible else tensor


def seed_tensor(dropout: float, seed: int | None, offset: int) -> Tensor | None:
    """Seed and offset of dropout, drawn where there is no seed; None without dropout."""
    if dropout == 0:
        return None
    if seed is None:
        return torch.randint(0, 2**62, (2,), dtype=torch.int64, device="cpu")
    signed = seed - 2**64 if seed >= 2**63 else seed
    return torch.tensor([signed, offset], dtype=torch.int64, device="cpu")


def _is_transformed() -> bool:
    """Whether a transform of torch.func is under way that is not the dispatcher's own business."""
    if not torch._C._are_functorch_transforms_active():  # compilers can trace this
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(each.key() != TransformType.Functionalize for each in stack)


def attend_through_dispatcher(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale: float | None = None,
    causal: int = 0,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    dropout: float = 0.0,
    seed: int | None = None,
    offset: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One call of the operator: the output and the log-sum-exp. Compilers can trace it."""
    query, key, value = autocast_inputs(query, key, value)
    drawn = seed_tensor(dropout, seed, offset)
    call: Callable[..., Any] = torch.ops.mps_sdpa.attention
    if _is_transformed():
        call = TransformableFunction.apply
    options = (scale, causal, *window, softcap, dropout, backend)
    out, lse = call(query, key, value, mask, sinks, drawn, *options)
    return out, lse
