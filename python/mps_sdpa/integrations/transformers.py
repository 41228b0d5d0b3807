# SPDX-License-Identifier: MIT
"""transformers: `attn_implementation="mps_sdpa"` after `register()`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mps_sdpa.api import attention, sdpa_opt
from mps_sdpa.integrations.position_mask import PositionMask, mask_function

__all__ = ["NAME", "attention_forward", "register"]

NAME = "mps_sdpa"


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """One mask from a mask and a position bias."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return mask + bias


def _is_causal(module: torch.nn.Module, is_causal: bool | None) -> bool:
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


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
    but for a single query, which sees everything. A sliding window is part of the mask, which
    `mask_function` leaves as numbers where it can.
    """
    if cache is not None:
        raise ValueError("the paged cache of continuous batching is not supported by mps_sdpa")
    causal: bool | str = _is_causal(module, is_causal) and attention_mask is None
    causal = causal and query.size(2) > 1
    window = None
    if type(attention_mask) is PositionMask and position_bias is None:
        keys = attention_mask.last_key
        key, value = key[:, :, :keys], value[:, :, :keys]
        causal, window, attention_mask = "lower_right", attention_mask.sides, None
    mask = _with_bias(attention_mask, position_bias)
    if softcap or s_aux is not None or causal == "lower_right":
        out = attention(
            query,
            key,
            value,
            mask=mask,
            causal=causal,
            window=window,
            softcap=softcap or 0.0,
            sinks=s_aux,
            dropout=dropout,
            scale=scaling,
        )
    else:
        out = sdpa_opt(query, key, value, mask, dropout, causal is True, scale=scaling)
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

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask_function)
    _admit(PreTrainedModel)
