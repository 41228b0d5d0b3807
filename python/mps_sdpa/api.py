# SPDX-License-Identifier: MIT
"""The functions that users call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from mps_sdpa import _core
from mps_sdpa.arguments import (
    attention_settings,
    check_packing,
    check_sinks,
    check_tensors,
    sdpa_settings,
)
from mps_sdpa.arrays import like_array, to_tensor
from mps_sdpa.engine import attend
from mps_sdpa.packed import attend_packed
from mps_sdpa.subclasses import is_causal_bias, with_causal_bias
from mps_sdpa.torch_ops import attend_through_dispatcher
from mps_sdpa.torch_ops_packed import attend_packed_through_dispatcher

__all__ = ["attention", "sdpa_opt", "varlen_attention"]

_enter = _core.enter
_is_compiling = torch.compiler.is_dynamo_compiling


def sdpa_opt(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, computed by the best back end.

    Takes what torch takes and gives what torch gives. In addition query heads that are a multiple
    of the key heads are grouped without `enable_gqa`, `attn_mask` and `is_causal` both apply, and
    a float mask may have any float dtype and gets a gradient.
    """
    if _is_compiling():
        causal = int(is_causal)
        if is_causal_bias(attn_mask):
            causal, attn_mask = int(with_causal_bias(query, key, attn_mask, causal)), None
        return attend_through_dispatcher(
            query,
            key,
            value,
            attn_mask,
            scale=scale,
            causal=causal,
            dropout=dropout_p,
            backend=backend,
        )[0]
    try:
        out = _enter(query, key, value, attn_mask, dropout_p, is_causal, scale, backend)
        if out is not None:
            return out
    except (RuntimeError, TypeError):
        pass  # the general door below finds out what is wrong and says so
    settings = sdpa_settings(dropout_p, is_causal, scale, backend)
    check_tensors(query, key, value, attn_mask)
    return attend(query, key, value, attn_mask, None, settings)[0]


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = ...,
    causal: bool | str = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    sinks: Tensor | None = ...,
    dropout: float = ...,
    scale: float | None = ...,
    seed: int | None = ...,
    return_lse: Literal[False] = ...,
    layout: str = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    return_lse: Literal[True],
    mask: Tensor | None = ...,
    causal: bool | str = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    sinks: Tensor | None = ...,
    dropout: float = ...,
    scale: float | None = ...,
    seed: int | None = ...,
    layout: str = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any = ...,
    causal: bool | str = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    sinks: Any = ...,
    dropout: float = ...,
    scale: float | None = ...,
    seed: int | None = ...,
    return_lse: bool = ...,
    layout: str = ...,
    backend: str = ...,
) -> Any: ...


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any = None,
    causal: bool | str = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    sinks: Any = None,
    dropout: float = 0.0,
    scale: float | None = None,
    seed: int | None = None,
    return_lse: bool = False,
    layout: str = "bhld",
    backend: str = "auto",
) -> Any:
    """Attention with every option of the engine.

    `causal` is False, True or "upper_left" (key j <= query i), or "lower_right" (the last query
    sees the last key). `window=(left, right)` limits keys around the query; -1 leaves a side open.
    `softcap` bounds scores by a tanh. `sinks` is one logit a head that takes part in the softmax
    without a value. `seed` fixes dropout. `layout` is "bhld", or "blhd" with heads inside lengths.
    With `return_lse` also the log of the softmax's sum, float32, [batch, heads, q_len].

    Arrays of other libraries on the CPU are taken too (NumPy, MLX, JAX, whatever has DLPack or the
    array interface); results are then arrays of the kind of `q`, and there are no gradients.
    """
    if not isinstance(q, Tensor):
        named = {"q": q, "k": k, "v": v, "mask": mask, "sinks": sinks}
        return _attention_of_arrays(
            named,
            causal=causal,
            window=window,
            softcap=softcap,
            dropout=dropout,
            scale=scale,
            seed=seed,
            return_lse=return_lse,
            layout=layout,
            backend=backend,
        )
    settings = attention_settings(causal, window, softcap, dropout, scale, seed, backend)
    check_tensors(q, k, v, mask)
    check_sinks(sinks)
    if layout not in ("bhld", "blhd"):
        raise ValueError(f"layout must be 'bhld' or 'blhd', but got {layout!r}")
    swapped = layout == "blhd"
    if swapped:
        q, k, v = q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)
    lse: Tensor | None
    if _is_compiling():
        out, lse = attend_through_dispatcher(
            q,
            k,
            v,
            mask,
            sinks,
            scale=scale,
            causal=int(settings.causal),
            window=settings.window,
            softcap=softcap,
            dropout=dropout,
            seed=seed,
            backend=backend,
        )
    else:
        out, lse = attend(q, k, v, mask, sinks, settings, return_lse)
    if swapped:
        out = out.transpose(-3, -2)
    if not return_lse:
        return out
    assert lse is not None
    return out, lse


def _attention_of_arrays(arrays: dict[str, Any], **options: Any) -> Any:
    """`attention` of arrays that are no tensors."""
    call: Callable[..., Any] = attention
    tensors = {
        name: None if array is None else to_tensor(name, array) for name, array in arrays.items()
    }
    with torch.no_grad():
        found = call(**tensors, **options)
    if isinstance(found, tuple):
        return tuple(like_array(each, arrays["q"]) for each in found)
    return like_array(found, arrays["q"])


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    causal: bool | str = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    seed: int | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of packed sequences: `q`, `k`, `v` are [total length, heads, dim].

    Sequence n has the queries cu_q[n] to cu_q[n + 1] and the keys cu_k[n] to cu_k[n + 1]; `max_q`
    and `max_k` are the longest lengths. The log-sum-exp is [heads, total length].
    """
    settings = attention_settings(causal, window, softcap, dropout, scale, seed, backend)
    check_tensors(q, k, v, None)
    check_sinks(sinks)
    out: Tensor
    lse: Tensor | None
    if torch.compiler.is_compiling():
        packing = (cu_q, cu_k, max_q, max_k)
        out, lse = attend_packed_through_dispatcher(q, k, v, sinks, packing, settings, seed)
    else:
        starts = check_packing(q, k, v, (cu_q, cu_k), (max_q, max_k))
        out, lse = attend_packed(q, k, v, sinks, starts, settings, return_lse)
    if not return_lse:
        return out
    assert lse is not None
    return out, lse
