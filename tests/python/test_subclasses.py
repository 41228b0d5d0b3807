# SPDX-License-Identifier: MIT
"""torch's causal biases and jagged tensors as kernels; other subclasses and modes fall back."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils._python_dispatch import TorchDispatchMode

import mps_sdpa
from mps_sdpa import sdpa_opt


@pytest.mark.parametrize("bias", [causal_upper_left, causal_lower_right])
@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 9), (9, 9)])
def test_causal_bias_is_a_kernel(bias: Any, q_len: int, kv_len: int) -> None:
    q = torch.randn(2, 4, q_len, 8, requires_grad=True)
    k = torch.randn(2, 4, kv_len, 8)
    mask = bias(q_len, kv_len)
    expected = F.scaled_dot_product_attention(q, k, k, mask)
    gradient = torch.autograd.grad(expected.square().sum(), q)
    with mps_sdpa.enabled():
        for function in (sdpa_opt, F.scaled_dot_product_attention):
            found = function(q, k, k, mask)
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(torch.autograd.grad(found.square().sum(), q), gradient)
    assert mps_sdpa.get_call_stats()["cpu"] >= 2
    assert mps_sdpa.get_fallback_stats() == {}


def test_lower_right_rows_that_see_nothing_are_zero() -> None:
    q, k = torch.randn(1, 1, 5, 8), torch.randn(1, 1, 3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = sdpa_opt(q, k, k, causal_lower_right(5, 3))
    assert torch.equal(out[..., :2, :], torch.zeros(1, 1, 2, 8))
    assert not out.isnan().any()


def test_causal_bias_errors() -> None:
    q = torch.randn(1, 1, 5, 8)
    with pytest.raises(ValueError, match="a CausalBias already is causal"):
        sdpa_opt(q, q, q, causal_upper_left(5, 5), is_causal=True)
    with pytest.raises(RuntimeError, match="attn_mask is a CausalBias of 4 x 7; it must be 5 x 5"):
        sdpa_opt(q, q, q, causal_lower_right(4, 7))


def _jagged(lengths: list[int], heads: int = 4) -> Tensor:
    rows = [torch.randn(length, heads, 8) for length in lengths]
    return torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)


@pytest.mark.parametrize("is_causal", [False, True])
def test_jagged_tensors(is_causal: bool) -> None:
    x = _jagged([3, 7, 1])
    q = x.transpose(1, 2)
    with mps_sdpa.enabled():
        out = F.scaled_dot_product_attention(q, q / 2, q, is_causal=is_causal)
    assert mps_sdpa.get_call_stats() == {"cpu": 1}
    assert out.is_nested
    assert (out + q).shape == q.shape
    out.values().square().sum().backward()
    leaves = [row.detach().clone().requires_grad_() for row in x.unbind()]
    for found, leaf, start in zip(out.unbind(), leaves, (0, 3, 10), strict=True):
        row = leaf.transpose(0, 1)
        expected = F.scaled_dot_product_attention(row, row / 2, row, is_causal=is_causal)
        torch.testing.assert_close(found, expected)
        expected.square().sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad.values()[start : start + row.size(1)], leaf.grad)


def test_jagged_cross_attention_with_grouped_heads() -> None:
    q, k = _jagged([3, 7, 1]).transpose(1, 2), _jagged([5, 2, 6], 2).transpose(1, 2)
    out = sdpa_opt(q, k, k)
    rows = [sdpa_opt(a, b, b) for a, b in zip(q.unbind(), k.unbind(), strict=True)]
    for found, expected in zip(out.unbind(), rows, strict=True):
        torch.testing.assert_close(found, expected)


def test_jagged_errors() -> None:
    q, k = _jagged([3, 7]).transpose(1, 2), _jagged([5, 2, 6]).transpose(1, 2)
    with pytest.raises(RuntimeError, match="query has a batch of 2 and key one of 3"):
        sdpa_opt(q, k, k)
    v = _jagged([5, 3, 5]).transpose(1, 2)
    with pytest.raises(RuntimeError, match="key and value must have the same ragged lengths"):
        sdpa_opt(v, k, v)


class Logged(Tensor):
    """A subclass that only counts what passes through it."""

    seen: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is mps_sdpa.stock.original:
            cls.seen.append("attention")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_other_subclasses_are_torchs() -> None:
    Logged.seen = []
    q = torch.randn(1, 2, 5, 8)
    out = sdpa_opt(q.as_subclass(Logged), q, q)
    assert type(out) is Logged
    assert Logged.seen == ["attention"]
    torch.testing.assert_close(out.as_subclass(Tensor), sdpa_opt(q, q, q))
    assert mps_sdpa.get_fallback_stats() == {"tensor subclass": 1}


class Operators(TorchDispatchMode):
    """Notes the operators that run below it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_fall_back() -> None:
    q = torch.randn(1, 2, 64, 8)
    expected = sdpa_opt(q, q, q)
    with Operators() as mode:
        torch.testing.assert_close(sdpa_opt(q, q, q), expected)
    assert any("scaled_dot_product" in name for name in mode.seen)
    assert mps_sdpa.get_fallback_stats() == {"dispatch mode": 1}
    graph = make_fx(lambda t: sdpa_opt(t, t, t))(q)
    torch.testing.assert_close(graph(q), expected)
    functional = torch.func.functionalize(lambda t: sdpa_opt(t, t, t))(q)
    torch.testing.assert_close(functional, expected)
