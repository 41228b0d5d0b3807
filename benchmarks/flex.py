# SPDX-License-Identifier: MIT
"""torch's compiled flex_attention, the peer for what torch's plain function cannot express."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mps_sdpa.harness.calls import Forward
from mps_sdpa.harness.cases import Case
from mps_sdpa.harness.data import Inputs


def _compiled() -> Callable[..., Any]:
    """For one case: of a ninth shape torch would run the original instead of compiling it."""
    torch.compiler.reset()
    return torch.compile(flex_attention, dynamic=False)


def can_express(case: Case) -> bool:
    """The cases it is the peer for: a window, a soft cap or sinks, and nothing else."""
    return case.mask is None and (case.window != (-1, -1) or case.softcap > 0 or case.sinks)


def forward_call(case: Case, inputs: Inputs) -> Forward:
    """The forward pass; flex_attention has no backward pass on the CPU."""
    key, value, score = inputs.key, inputs.value, None
    if case.softcap > 0:
        score = _soft_cap(case.softcap)
    if inputs.sinks is not None:  # one more key, whose score is the sink and whose value is zero
        key, value = (torch.nn.functional.pad(tensor, (0, 0, 0, 1)) for tensor in (key, value))
        score = _sink_logits(inputs.sinks, case.kv_len)
    return functools.partial(
        _compiled(),
        inputs.query,
        key,
        value,
        score_mod=score,
        block_mask=_block_mask(case),
        enable_gqa=case.q_heads != case.kv_heads,
    )


def _soft_cap(cap: float) -> Callable[..., torch.Tensor]:
    def score(value: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return cap * torch.tanh(value / cap)

    return score


def _sink_logits(sinks: torch.Tensor, sink: int) -> Callable[..., torch.Tensor]:
    def score(
        value: torch.Tensor, _b: Any, head: torch.Tensor, _q: Any, key: torch.Tensor
    ) -> torch.Tensor:
        return torch.where(key == sink, sinks[head], value)

    return score


def _block_mask(case: Case) -> Any:
    if case.causal == "none" and case.window == (-1, -1):
        return None
    left, right = case.window
    causal, ahead = case.causal != "none", case.diagonal

    def visible(_b: Any, _h: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        distance = query + ahead - key
        seen = distance >= (0 if causal else -case.kv_len)
        if left >= 0:
            seen = seen & (distance <= left)
        if right >= 0:
            seen = seen & (distance >= -right)
        return seen | (key == case.kv_len)  # the sink, where there is one

    keys = case.kv_len + int(case.sinks)
    return create_block_mask(visible, None, None, case.q_len, keys, device="cpu")
