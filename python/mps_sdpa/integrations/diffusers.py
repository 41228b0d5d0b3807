# SPDX-License-Identifier: MIT
"""diffusers: its "native" attention back end becomes ours after `register()`.

The set of back ends of diffusers is closed, so we stand in for "native", which is the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mps_sdpa.api import attention, sdpa_opt

__all__ = ["register", "unregister"]

_originals: list[Callable[..., Any]] = []


def _padding(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """A mask [batch, kv_len] is about keys; any other comes as torch's function takes it."""
    if mask is not None and mask.shape == (query.size(0), key.size(1)):
        return mask[:, None, None, :]
    return mask


def _native_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _parallel_config: Any = None,
) -> Any:
    """[batch, len, heads, dim] in and out; context parallelism stays with diffusers."""
    if _parallel_config is not None:
        return _originals[0](
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale,
            enable_gqa,
            return_lse,
            _parallel_config,
        )
    mask = _padding(attn_mask, query, key)
    if return_lse:
        return attention(
            query,
            key,
            value,
            mask=mask,
            causal=is_causal,
            dropout=dropout_p,
            scale=scale,
            return_lse=True,
            layout="blhd",
        )
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return sdpa_opt(query, key, value, mask, dropout_p, is_causal, scale=scale).transpose(1, 2)


def register() -> None:
    """Makes diffusers' "native" back end ours. Calling it again changes nothing."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    current = _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE]
    if current is not _native_attention:
        _originals[:] = [current]
        _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE] = _native_attention


def unregister() -> None:
    """Gives "native" back, if it was taken."""
    if not _originals:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE] = _originals.pop()
