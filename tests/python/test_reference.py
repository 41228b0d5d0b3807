# SPDX-License-Identifier: MIT
"""The oracle against torch in float64: its math path, and its own tensor operations where torch's
function lacks a feature; gradients by torch's autograd."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mps_sdpa import _core
from mps_sdpa.engine import attach

_NONE, _UPPER_LEFT, _LOWER_RIGHT = 0, 1, 2
_BATCH, _HEADS, _KV_HEADS, _Q_LEN, _KV_LEN, _DIM, _V_DIM = 2, 4, 2, 7, 11, 5, 3


@dataclass(frozen=True)
class Features:
    """What a call asks for besides its tensors."""

    causal: int = _NONE
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    dropout: float = 0.0
    scale: float | None = None

    def options(self) -> _core.Options:
        return _core.Options(
            scale=self.scale,
            causal=self.causal,
            window=self.window,
            softcap=self.softcap,
            dropout=self.dropout,
            seed=2**33 + 7,
        )


@dataclass
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    sinks: Tensor | None = None

    def all(self) -> tuple[Tensor | None, ...]:
        return self.query, self.key, self.value, self.mask, self.sinks

    def leaves(self) -> list[Tensor]:
        return [t for t in self.all() if t is not None and t.requires_grad]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def _inputs(mask: str = "none", sinks: bool = False) -> Inputs:
    inputs = Inputs(
        _random(_BATCH, _HEADS, _Q_LEN, _DIM),
        _random(_BATCH, _KV_HEADS, _KV_LEN, _DIM),
        _random(_BATCH, _KV_HEADS, _KV_LEN, _V_DIM),
    )
    shapes = {
        "full": (_BATCH, 1, _Q_LEN, _KV_LEN),
        "heads": (_BATCH, _HEADS, _Q_LEN, _KV_LEN),
        "matrix": (_Q_LEN, _KV_LEN),
        "keys": (_BATCH, 1, 1, _KV_LEN),
    }
    if mask == "bool":
        inputs.mask = torch.rand(shapes["full"]) > 0.3
    elif mask != "none":
        inputs.mask = _random(*shapes[mask])
    if sinks:
        inputs.sinks = _random(_HEADS)
    return inputs


def _visible(features: Features) -> Tensor:
    """[q_len, kv_len]: which pairs causality and the window leave."""
    shift = _KV_LEN - _Q_LEN if features.causal == _LOWER_RIGHT else 0
    position = torch.arange(_Q_LEN)[:, None] + shift
    key = torch.arange(_KV_LEN)[None, :]
    left, right = features.window
    visible = torch.ones(_Q_LEN, _KV_LEN, dtype=torch.bool)
    if features.causal != _NONE:
        visible &= key <= position
    if left >= 0:
        visible &= key >= position - left
    if right >= 0:
        visible &= key <= position + right
    return visible


def _textbook(inputs: Inputs, features: Features) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp in torch's own operations, every row seeing at least one key."""
    group = _HEADS // _KV_HEADS
    key = inputs.key.repeat_interleave(group, 1)
    value = inputs.value.repeat_interleave(group, 1)
    scores = inputs.query @ key.mT * (features.scale or 1 / math.sqrt(_DIM))
    if features.softcap:
        scores = features.softcap * torch.tanh(scores / features.softcap)
    visible = _visible(features)
    if inputs.mask is not None and inputs.mask.dtype == torch.bool:
        visible = visible & inputs.mask
    elif inputs.mask is not None:
        scores = scores + inputs.mask
    scores = scores.masked_fill(~visible, float("-inf"))
    logits = scores
    if inputs.sinks is not None:
        column = inputs.sinks[None, :, None, None].expand(_BATCH, _HEADS, _Q_LEN, 1)
        logits = torch.cat([scores, column], -1)
    lse = torch.logsumexp(logits, -1)
    probability = torch.exp(scores - lse[..., None])
    if features.dropout:
        keep = torch.empty(_BATCH * _HEADS, _Q_LEN, _KV_LEN, dtype=torch.bool)
        _core.keep_mask(features.options(), keep)
        probability = probability * keep.view_as(probability) / (1 - features.dropout)
    return probability @ value, lse


def _oracle(
    inputs: Inputs, features: Features, grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    attach()
    plain = tuple(t if t is None else t.detach() for t in inputs.all())
    out = torch.empty(_BATCH, _HEADS, _Q_LEN, _V_DIM, dtype=torch.float64)
    lse = torch.empty(_BATCH, _HEADS, _Q_LEN, dtype=torch.float64)
    _core.reference_forward(plain, features.options(), out, lse)
    gradients = tuple(
        torch.zeros_like(t) if t is not None and t.requires_grad else None for t in inputs.all()
    )
    _core.reference_backward(plain, features.options(), grad_out, grad_lse, gradients)
    return out, lse, [gradient for gradient in gradients if gradient is not None]


def _assert_agrees(inputs: Inputs, features: Features, expected: tuple[Tensor, Tensor]) -> None:
    out, lse = expected
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    wanted = torch.autograd.grad([out, lse], inputs.leaves(), [grad_out, grad_lse])
    found_out, found_lse, found = _oracle(inputs, features, grad_out, grad_lse)
    torch.testing.assert_close(found_out, out, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found_lse, lse, rtol=1e-10, atol=1e-12)
    for actual, gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mask", ["none", "bool", "full", "heads", "matrix", "keys"])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 0.9])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_features(mask: str, sinks: bool, softcap: float, dropout: float) -> None:
    inputs = _inputs(mask, sinks)
    features = Features(softcap=softcap, dropout=dropout)
    _assert_agrees(inputs, features, _textbook(inputs, features))


@pytest.mark.parametrize(
    ("causal", "window"),
    [
        *itertools.product([_UPPER_LEFT, _LOWER_RIGHT], [(-1, -1), (3, -1), (2, 2), (0, 0)]),
        (_NONE, (4, 1)),
        (_NONE, (0, -1)),
    ],
)
def test_visibility(causal: int, window: tuple[int, int]) -> None:
    inputs = _inputs("heads", sinks=True)
    features = Features(causal=causal, window=window)
    _assert_agrees(inputs, features, _textbook(inputs, features))


@pytest.mark.parametrize("scale", [None, 0.3, -1.0])
@pytest.mark.parametrize("mask", ["none", "bool", "full", "causal"])
def test_torchs_math_path(mask: str, scale: float | None) -> None:
    causal = mask == "causal"
    inputs = _inputs("none" if causal else mask)
    with sdpa_kernel([SDPBackend.MATH]):
        out = F.scaled_dot_product_attention(
            inputs.query,
            inputs.key,
            inputs.value,
            inputs.mask,
            is_causal=causal,
            scale=scale,
            enable_gqa=True,
        )
    grad_out = torch.randn_like(out)
    wanted = torch.autograd.grad(out, inputs.leaves(), grad_out)
    features = Features(causal=_UPPER_LEFT if causal else _NONE, scale=scale)
    found_out, _, found = _oracle(inputs, features, grad_out, None)
    torch.testing.assert_close(found_out, out.detach(), rtol=1e-10, atol=1e-12)
    for actual, gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-9, atol=1e-11)


def test_fully_masked_rows_are_zero() -> None:
    inputs = _inputs("bool")
    assert inputs.mask is not None
    inputs.mask[:, :, 2] = False
    grad_out = torch.randn(_BATCH, _HEADS, _Q_LEN, _V_DIM, dtype=torch.float64)
    grad_lse = torch.randn(_BATCH, _HEADS, _Q_LEN, dtype=torch.float64)
    out, lse, (grad_query, grad_key, grad_value) = _oracle(inputs, Features(), grad_out, grad_lse)
    assert out[:, :, 2].eq(0).all()
    assert lse[:, :, 2].eq(float("-inf")).all()
    assert grad_query[:, :, 2].eq(0).all()
    assert all(torch.isfinite(t).all() for t in (grad_query, grad_key, grad_value))
