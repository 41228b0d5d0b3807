# SPDX-License-Identifier: MIT
"""Tensor subclasses of torch whose meaning the kernels know: causal biases and jagged tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mps_sdpa.settings import Causal, Settings

__all__ = ["attend_jagged", "is_causal_bias", "is_jagged", "with_causal_bias"]


def is_causal_bias(mask: Any) -> bool:
    """Whether a mask is one of torch.nn.attention.bias; that module is not imported for it."""
    return type(mask).__name__ == "CausalBias" and hasattr(mask, "variant")


def with_causal_bias(query: Tensor, key: Tensor, mask: Any, causal: int) -> Causal:
    """Which keys a causal bias lets queries see. `causal` is what was asked for besides it."""
    if causal != Causal.NONE:
        raise ValueError("a CausalBias already is causal; is_causal must be False with it")
    if mask.variant.name == "UPPER_LEFT":
        return Causal.UPPER_LEFT
    if (mask.seq_len_q, mask.seq_len_kv) != (query.size(-2), key.size(-2)):
        raise RuntimeError(
            f"attn_mask is a CausalBias of {mask.seq_len_q} x {mask.seq_len_kv}; "
            f"it must be {query.size(-2)} x {key.size(-2)}"
        )
    return Causal.LOWER_RIGHT


def _is_jagged_sequence(tensor: Any) -> bool:
    return (
        tensor.is_nested
        and tensor.layout == torch.jagged
        and tensor.dim() == 4
        and tensor._ragged_idx == 2
        and tensor.lengths() is None
    )


def is_jagged(query: Any, key: Any, value: Any, mask: Any) -> bool:
    """Whether a call is one of nested tensors [batch, heads, ragged length, dim] without holes."""
    return mask is None and all(map(_is_jagged_sequence, (query, key, value)))


def attend_jagged(
    query: Any, key: Any, value: Any, sinks: Tensor | None, settings: Settings
) -> Tensor:
    """Attention of each sequence of the batch by itself, without padding."""
    from mps_sdpa.packed import attend_packed

    rows = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    if rows[1].offsets() is not rows[2].offsets() and not torch.equal(
        rows[1].offsets(), rows[2].offsets()
    ):
        raise RuntimeError("key and value must have the same ragged lengths")
    starts = (rows[0].offsets().tolist(), rows[1].offsets().tolist())
    if len(starts[0]) != len(starts[1]):
        raise RuntimeError(
            f"query has a batch of {len(starts[0]) - 1} and key one of {len(starts[1]) - 1}"
        )
    q, k, v = (each.values() for each in rows)
    out, _ = attend_packed(q, k, v, sinks, starts, settings, False)
    nested = torch.nested.nested_tensor_from_jagged(
        out,
        rows[0].offsets(),
        min_seqlen=rows[0]._maybe_min_seqlen,
        max_seqlen=rows[0]._maybe_max_seqlen,
    )
    return nested.transpose(1, 2)
