# SPDX-License-Identifier: MIT
"""torch's own function, as it was before anything was patched, given our semantics."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mps_sdpa import composite, stats
from mps_sdpa.settings import Causal, Settings

__all__ = ["is_running", "original", "stock_attention", "stock_sdpa"]

#: Bound when this module is first imported, which is before `enable()` can replace it.
original = F.scaled_dot_product_attention


_running = threading.local()


def is_running() -> bool:
    """Whether this thread is inside a call that torch's own kernels shall compute."""
    return getattr(_running, "depth", 0) > 0


@contextlib.contextmanager
def _as_stock() -> Iterator[None]:
    _running.depth = getattr(_running, "depth", 0) + 1
    try:
        yield
    finally:
        _running.depth -= 1


def _with_causal(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask with the upper-left triangle folded in, for a torch that refuses both."""
    visible = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device=query.device).tril()
    if mask.dtype == torch.bool:
        return mask & visible
    return mask.masked_fill(~visible, float("-inf"))


def _heads(tensor: Tensor) -> int:
    return tensor.size(-3) if tensor.dim() >= 3 else 1


def stock_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """One call of torch's function: both masks apply, any float mask, grouped heads."""
    if attn_mask is not None:
        if attn_mask.is_floating_point() and attn_mask.dtype != query.dtype:
            attn_mask = attn_mask.to(query.dtype)
        if is_causal:
            attn_mask, is_causal = _with_causal(attn_mask, query, key), False
    heads = _heads(query)
    grouped = enable_gqa or bool(heads != _heads(key) and 1 not in (heads, _heads(key)))
    with _as_stock():
        out: Tensor = original(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=grouped
        )
    stats.record_stock_call()
    return out


def stock_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    settings: Settings,
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """torch's function where it has what is asked for, else the formula in torch operations."""
    if sinks is None and not want_lse and settings.is_torchs:
        causal = settings.causal == Causal.UPPER_LEFT
        out = stock_sdpa(query, key, value, mask, settings.dropout, causal, settings.scale)
        return out, None
    out, lse = composite.attention(query, key, value, mask, sinks, settings)
    stats.record_stock_call()
    return out, lse if want_lse else None
