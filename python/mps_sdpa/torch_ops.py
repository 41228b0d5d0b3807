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

from mps_sdpa import devices
from mps_sdpa.settings import Causal, Settings

__all__ = ["attend_through_dispatcher"]

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


def _settings(options: tuple[Any, ...], seed: Tensor | None) -> Settings:
    scale, causal, left, right, softcap, dropout, backend = options
    drawn, offset = (0, 0) if seed is None else seed.tolist()
    return Settings(
        scale=scale,
        causal=Causal(causal),
        window=(left, right),
        softcap=softcap,
        dropout=dropout,
        seed=drawn,
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
        settings = _settings(options, seed)
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

    settings = _settings((*options[:-1], "auto"), seed)
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


torch.library.register_autograd(
    "mps_sdpa::attention", _backward, setup_context=_setup_context, lib=_library
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


def _check_unmapped(in_dims: tuple[Any, ...]) -> None:
    if in_dims[4] is not None or in_dims[5] is not None:
        raise RuntimeError("vmap over sinks or over the seed of dropout is not supported")


def _fold_all(
    tensors: Sequence[Tensor | None], dims: Sequence[int | None], size: int, rank: int
) -> list[Tensor | None]:
    return [_fold(tensor, dim, size, rank) for tensor, dim in zip(tensors, dims, strict=True)]


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
    """The mapped dimension becomes one more batch dimension. Sinks are one set for all."""
    _check_unmapped(in_dims)
    rank = _rank(arguments[:4], in_dims[:4])
    folded = _fold_all(arguments[:4], in_dims[:4], info.batch_size, max(rank, 3))
    out, lse = torch.ops.mps_sdpa.attention(*folded, *arguments[4:])
    if rank < 3:
        out, lse = out.squeeze(1), lse.squeeze(1)
    return (out, lse), (0, 0)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
    """Each sample has its own gradients, of unmapped inputs too."""
    _check_unmapped(in_dims)
    if arguments[10][4]:
        raise RuntimeError("vmap over gradients of sinks is not supported")
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
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One call of the operator: the output and the log-sum-exp. Compilers can trace it."""
    kind = devices.kind(query)
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    drawn = None
    if dropout > 0 and seed is None:
        drawn = torch.randint(0, 2**62, (2,), dtype=torch.int64, device="cpu")
    elif dropout > 0:
        drawn = torch.tensor([seed, 0], dtype=torch.int64, device="cpu")
    transformed = torch._C._are_functorch_transforms_active()
    call: Callable[..., Any] = torch.ops.mps_sdpa.attention
    if transformed:
        call = TransformableFunction.apply
    options = (scale, causal, *window, softcap, dropout, backend)
    out, lse = call(query, key, value, mask, sinks, drawn, *options)
    return out, lse
