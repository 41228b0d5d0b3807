# SPDX-License-Identifier: MIT
"""Packed sequences: one problem each, on views of the packed tensors, without padding."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from mps_sdpa.engine import attend
from mps_sdpa.settings import Settings

__all__ = ["attend_packed"]


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    starts: tuple[list[int], list[int]],
    settings: Settings,
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """The output [total, heads, v_dim], and the log-sum-exp [heads, total] if wanted.

    Each sequence has its own dropout offset, so that masks do not repeat.
    """
    outputs, sums = [], []
    heads_first = [tensor.transpose(0, 1) for tensor in (q, k, v)]
    ranges = zip(*(itertools.pairwise(start) for start in starts), strict=True)
    for index, ((q_from, q_to), (k_from, k_to)) in enumerate(ranges):
        query = heads_first[0][:, q_from:q_to]
        key, value = (tensor[:, k_from:k_to] for tensor in heads_first[1:])
        if settings.dropout > 0:
            offset = (settings.offset + index) & 0xFFFFFFFF
            own = dataclasses.replace(settings, offset=offset)
        else:
            own = settings
        out, lse = attend(query, key, value, None, sinks, own, want_lse)
        outputs.append(out.transpose(0, 1))
        sums.append(lse)
    if not outputs:
        return q.new_empty(0, q.size(1), v.size(2)), None
    lse = torch.cat([each for each in sums if each is not None], -1) if want_lse else None
    return torch.cat(outputs), lse
