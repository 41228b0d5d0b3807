# SPDX-License-Identifier: MIT
"""transformers: `attn_implementation="mps_sdpa"` after `register()`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mps_sdpa.api import attention, sdpa_opt

__all__ = ["NAME", "attention_forward", "register"]

NAME = "mps_sdpa"


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """One mask from a mask and a position bias."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return mask + bias


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cache: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: [batch, heads, len, dim] in, heads inside.

    Heads are grouped natively. Without a mask the model is causal by itself, aligned upper left,
    but for a single query, which sees everything. A sliding window comes as part of the mask.
    """
    if cache is not None:
        raise ValueError("the paged cache of continuous batching is not supported by mps_sdpa")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and query.size(2) > 1
    mask = _with_bias(attention_mask, position_bias)
    if softcap or s_aux is not None:
        out = attention(
            query,
            key,
            value,
            mask=mask,
            causal=causal,
            softcap=softcap or 0.0,
            sinks=s_aux,
            dropout=dropout,
            scale=scaling,
        )
    else:
        out = sdpa_opt(query, key, value, mask, dropout, causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _admit(model_class: Any) -> None:
    """Lets every model choose us. transformers takes any name with "sdpa" in it for torch's own
    function, and refuses it for models whose soft cap or sinks that function lacks."""
    check = model_class.get_correct_attn_implementation
    if getattr(check, "admits_mps_sdpa", False):
        return

    @functools.wraps(check)
    def admitting(self: Any, requested: str | None, *arguments: Any, **options: Any) -> Any:
        return NAME if requested == NAME else check(self, requested, *arguments, **options)

    admitting.admits_mps_sdpa = True  # type: ignore[attr-defined]
    model_class.get_correct_attn_implementation = admitting


def register() -> None:
    """Makes "mps_sdpa" an attention implementation of transformers, with its mask function."""
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    _admit(PreTrainedModel)
