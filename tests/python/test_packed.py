# SPDX-License-Identifier: MIT
"""Packed sequences: one call of the library, and the same numbers as one call a sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mps_sdpa
from mps_sdpa import attention, varlen_attention

LENGTHS = [3, 1, 0, 40, 2, 7]


def _starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def _inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    total = sum(LENGTHS)
    shapes = [(total, 4, 8), (total, 2, 8), (total, 2, 6), (4,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def _packed(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, **options: Any) -> Any:
    starts = _starts(LENGTHS)
    return varlen_attention(
        q, k, v, starts, starts, max(LENGTHS), max(LENGTHS), sinks=sinks, return_lse=True, **options
    )


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, **options: Any) -> Any:
    outputs, sums = [], []
    for a, b, c in zip(*(tensor.split(LENGTHS) for tensor in (q, k, v)), strict=True):
        heads = [tensor.transpose(0, 1) for tensor in (a, b, c)]
        out, lse = attention(*heads, sinks=sinks, return_lse=True, **options)
        outputs.append(out.transpose(0, 1))
        sums.append(lse)
    return torch.cat(outputs), torch.cat(sums, -1)


def _gradients(function: Any, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    out, lse = function(*inputs, **options)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    loss = (out * weights).sum() + lse.sin().sum()
    return [out, lse, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "window": (3, -1)}, {"causal": "lower_right", "softcap": 2.0}]
)
def test_packed_is_each_by_itself(options: dict[str, Any]) -> None:
    inputs = _inputs()
    found = _gradients(_packed, inputs, **options)
    assert mps_sdpa.get_call_stats() == {"cpu": 1}
    torch.testing.assert_close(found, _gradients(_one_by_one, inputs, **options))


def test_dropout_differs_between_sequences_and_repeats() -> None:
    q = torch.zeros(64, 1, 8)
    v = torch.eye(32).repeat(2, 1)[:, None]
    starts = _starts([32, 32])
    first = varlen_attention(q, q, v, starts, starts, 32, 32, dropout=0.5, seed=3)
    assert isinstance(first, Tensor)
    again = varlen_attention(q, q, v, starts, starts, 32, 32, dropout=0.5, seed=3)
    assert torch.equal(first, again)
    assert not torch.equal(first[:32], first[32:])


def test_gradients_are_differentiable() -> None:
    starts = _starts([3, 0, 2])
    shapes = [(5, 2, 3), (5, 1, 3), (5, 1, 2), (2,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def packed(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Any:
        options: dict[str, Any] = {"sinks": sinks, "causal": True, "return_lse": True}
        return varlen_attention(q, k, v, starts, starts, 3, 3, **options)

    torch.autograd.gradcheck(packed, inputs)
    torch.autograd.gradgradcheck(packed, inputs)


def test_lazily_negated_gradients_of_the_results() -> None:
    inputs = _inputs()
    results = _packed(*inputs)
    grads = [torch.randn(each.shape, dtype=torch.complex64).conj().imag for each in results]
    assert all(grad.is_neg() for grad in grads)
    found = torch.autograd.grad(results, inputs, grads, retain_graph=True)
    expected = torch.autograd.grad(results, inputs, [grad.resolve_neg() for grad in grads])
    assert all(map(torch.equal, found, expected))


def test_autocast_and_explicit_stock() -> None:
    inputs = [tensor.detach() for tensor in _inputs()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = _packed(*inputs)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(
        _packed(*inputs, backend="stock"), _packed(*inputs), atol=1e-5, rtol=1e-4
    )


def test_grad_of_packed_sequences() -> None:
    inputs = [tensor.detach() for tensor in _inputs()]

    def loss(*tensors: Tensor) -> Tensor:
        return _packed(*tensors)[0].square().sum()

    leaf = [tensor.clone().requires_grad_() for tensor in inputs]
    expected = torch.autograd.grad(loss(*leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss, (0, 1, 2, 3))(*inputs), expected)


def test_no_sequences() -> None:
    q = torch.randn(0, 2, 8)
    out, lse = varlen_attention(q, q, q, _starts([]), _starts([]), 0, 0, return_lse=True)
    assert (out.shape, lse.shape) == ((0, 2, 8), (2, 0))
