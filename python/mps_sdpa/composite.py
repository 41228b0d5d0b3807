# SPDX-License-Identifier: MIT
"""Attention as a formula in torch operations: differentiable any number of times, on any device.

It stores the q_len x kv_len matrix. It serves where no kernel can: derivatives of derivatives,
forward-mode derivatives, transforms, and options of `attention` that torch's function lacks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mps_sdpa import _core
from mps_sdpa.settings import Causal, Settings

__all__ = ["attention", "keep_mask", "visible_pairs"]


def visible_pairs(q_len: int, kv_len: int, settings: Settings, device: torch.device) -> Tensor:
    """The pairs [q_len, kv_len] that causality and the window let see each other."""
    shift = kv_len - q_len if settings.causal == Causal.LOWER_RIGHT else 0
    position = torch.arange(q_len, device=device).unsqueeze(1) + shift
    key = torch.arange(kv_len, device=device)
    visible = torch.ones(q_len, kv_len, dtype=torch.bool, device=device)
    if settings.causal != Causal.NONE:
        visible = visible & (key <= position)
    left, right = settings.window
    if left >= 0:
        visible = visible & (key >= position - left)
    if right >= 0:
        visible = visible & (key <= position + right)
    return visible


def keep_mask(shape: torch.Size, settings: Settings, device: torch.device) -> Tensor:
    """Which probabilities survive dropout, the same bits as in the kernels."""
    kept = torch.empty(math.prod(shape[:-2]), *shape[-2:], dtype=torch.bool)
    drawn = settings.drawn()
    options = _core.Options(dropout=settings.dropout, seed=drawn.seed or 0, offset=drawn.offset)
    _core.keep_mask(options, kept)
    return kept.view(shape).to(device)


def _expand_heads(tensor: Tensor, heads: int) -> Tensor:
    if tensor.dim() < 3 or tensor.size(-3) in (1, heads) or heads == 1:
        return tensor
    return tensor.repeat_interleave(heads // tensor.size(-3), -3)


def _scores(
    query: Tensor, key: Tensor, mask: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """The scores after cap and additive mask, and which pairs are visible."""
    scale = settings.scale
    if scale is None:
        scale = 1 / math.sqrt(query.size(-1)) if query.size(-1) else 1.0
    scores = (query @ key.transpose(-2, -1)) * scale
    if settings.softcap > 0:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    visible = visible_pairs(query.size(-2), key.size(-2), settings, query.device)
    if mask is not None and mask.dtype == torch.bool:
        visible = visible & mask
    elif mask is not None:
        visible = visible & (mask != float("-inf"))
        scores = scores + mask.masked_fill(mask == float("-inf"), 0).to(scores.dtype)
    return scores, visible


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """The output and the log-sum-exp, in the mathematics of sdpa/reference.cpp."""
    wide = torch.promote_types(query.dtype, torch.float32)
    heads = query.size(-3) if query.dim() >= 3 else 1
    q = query.to(wide)
    k, v = (_expand_heads(tensor.to(wide), heads) for tensor in (key, value))
    scores, visible = _scores(q, k, mask, settings)
    hidden = scores.masked_fill(~visible, float("-inf"))
    columns = [hidden]
    if sinks is not None:
        columns.append(sinks.to(wide).view(-1, 1, 1).expand(*hidden.shape[:-1], 1))
    logits = torch.cat(columns, -1)
    nothing = (logits == float("-inf")).all(-1, keepdim=True)
    lse = torch.logsumexp(logits.masked_fill(nothing, 0), -1, keepdim=True)
    weights = torch.exp(hidden - lse)
    if settings.dropout > 0:
        kept = keep_mask(weights.shape, settings, query.device)
        weights = weights * kept * (1 / (1 - settings.dropout) if settings.dropout < 1 else 0)
    out = (weights @ v).to(query.dtype)
    return out, lse.masked_fill(nothing, float("-inf")).squeeze(-1)
