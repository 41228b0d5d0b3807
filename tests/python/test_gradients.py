# SPDX-License-Identifier: MIT
"""Gradients: of everything that can have one, of nothing that was not asked for, and again."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from comparison import assert_close, expected_sdpa, leaves
from test_sdpa import SHAPES, STRIDES
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mps_sdpa import _core, attention, composite, sdpa_opt
from mps_sdpa.settings import Causal, Settings

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def _gradients(out: Tensor, inputs: list[Tensor], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return list(torch.autograd.grad((out.double() * weight).sum(), inputs))


def _check(inputs: list[Tensor], dtype: torch.dtype, **arguments: Any) -> None:
    ours, theirs = leaves(inputs), leaves(inputs, torch.float64)
    mine = _gradients(sdpa_opt(*ours, **arguments), ours)
    expected = _gradients(expected_sdpa(*theirs, **arguments), theirs)
    for gradient, other, tensor in zip(mine, expected, ours, strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.dtype == tensor.dtype
        assert_close(gradient, other, dtype, 2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_inputs(dtype: torch.dtype, causal: bool, heads: tuple[int, int]) -> None:
    q = torch.randn(2, heads[0], 19, 24, dtype=dtype)
    k, v = (torch.randn(2, heads[1], 33, 24, dtype=dtype) for _ in range(2))
    _check([q, k, v], dtype, is_causal=causal)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_broadcasting(shapes: list[tuple[int, ...]]) -> None:
    _check([torch.randn(shape) for shape in shapes], torch.float32)


@pytest.mark.parametrize("view", STRIDES.values(), ids=STRIDES.keys())
def test_strides(view: Any) -> None:
    base = [torch.randn(2, 3, 21, 16) for _ in range(3)]
    ours, theirs = leaves(base), leaves(base, torch.float64)
    mine = _gradients(sdpa_opt(*map(view, ours)), ours)
    expected = _gradients(expected_sdpa(*map(view, theirs)), theirs)
    for gradient, other in zip(mine, expected, strict=True):
        assert_close(gradient, other, torch.float32, 2)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4))[1:])
def test_only_what_is_asked_for(wanted: tuple[bool, ...]) -> None:
    shapes = [(1, 2, 9, 8), (1, 2, 13, 8), (1, 2, 13, 8), (2, 9, 13)]
    tensors = [torch.randn(shape) for shape in shapes]
    ours = [t.clone().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
    theirs = [t.double().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
    sdpa_opt(*ours).sum().backward()
    expected_sdpa(*theirs).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None and other.grad is not None:
            assert_close(mine.grad, other.grad, torch.float32, 2)


@pytest.mark.parametrize(
    "shape",
    [(2, 4, 9, 13), (1, 4, 9, 13), (2, 1, 9, 13), (9, 13), (4, 9, 1), (2, 1, 1, 13), (13,), ()],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_float_mask(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 4, n, 8) for n in (9, 13, 13))
    mask = torch.randn(shape, dtype=dtype)
    ours, theirs = leaves([mask]), leaves([mask], torch.float64)
    mine = _gradients(sdpa_opt(q, k, v, ours[0], is_causal=True), ours)[0]
    expected = _gradients(expected_sdpa(q, k, v, theirs[0], True), theirs)[0]
    assert mine.dtype == dtype
    assert mine.shape == shape
    assert_close(mine, expected, max(dtype, torch.float32, key=lambda d: torch.finfo(d).eps), 2)


def test_expanded_mask_gets_the_whole_gradient() -> None:
    q = torch.randn(2, 4, 9, 8)
    ours, theirs = leaves([torch.randn(9, 9)]), leaves([torch.randn(9, 9)])
    theirs[0].data.copy_(ours[0].data)
    mine = _gradients(sdpa_opt(q, q, q, ours[0].expand(2, 4, 9, 9)), ours)[0]
    assert_close(mine, _gradients(sdpa_opt(q, q, q, theirs[0]), theirs)[0], torch.float32, 2)


OPTIONS: dict[str, dict[str, Any]] = {
    "lower right": {"causal": "lower_right"},
    "window": {"causal": True, "window": (3, 0)},
    "softcap": {"softcap": 1.5},
    "dropout": {"dropout": 0.3, "seed": 7},
    "all": {"causal": "lower_right", "window": (5, 2), "softcap": 2.0, "dropout": 0.2, "seed": 3},
}
CAUSAL = {False: Causal.NONE, True: Causal.UPPER_LEFT, "lower_right": Causal.LOWER_RIGHT}


def _settings(options: dict[str, Any]) -> Settings:
    return Settings(
        causal=CAUSAL[options.get("causal", False)],
        window=options.get("window", (-1, -1)),
        softcap=options.get("softcap", 0.0),
        dropout=options.get("dropout", 0.0),
        seed=options.get("seed", 0),
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("with_sinks", [False, True])
def test_options_and_sinks_and_lse(options: dict[str, Any], with_sinks: bool) -> None:
    shapes = [(2, 4, 9, 8), (2, 2, 13, 8), (2, 2, 13, 8), (4, 9, 13), (4,)]
    tensors = [torch.randn(shape) for shape in shapes]
    tensors = tensors if with_sinks else tensors[:4]
    ours, theirs = leaves(tensors), leaves(tensors, torch.float64)
    sinks = ours[4] if with_sinks else None
    out, lse = attention(*ours[:3], mask=ours[3], sinks=sinks, return_lse=True, **options)
    expected = composite.attention(
        *theirs[:4], theirs[4] if with_sinks else None, _settings(options)
    )
    assert lse.dtype == torch.float32
    assert lse.shape == (2, 4, 9)
    assert_close(out, expected[0], torch.float32)
    assert_close(lse, expected[1], torch.float32)
    mine = torch.autograd.grad(out.square().sum() + lse.sin().sum(), ours)
    other = torch.autograd.grad(expected[0].square().sum() + expected[1].sin().sum(), theirs)
    for gradient, exact in zip(mine, other, strict=True):
        assert_close(gradient, exact, torch.float32, 4)


def test_only_the_lse_in_the_loss() -> None:
    ours = leaves([torch.randn(1, 2, 5, 8) for _ in range(3)])
    theirs = leaves(ours, torch.float64)
    attention(*ours, return_lse=True)[1].sum().backward()
    composite.attention(*theirs, None, None, Settings())[1].sum().backward()
    assert_close(ours[0].grad, theirs[0].grad, torch.float32, 2)
    assert_close(ours[1].grad, theirs[1].grad, torch.float32, 2)
    assert ours[2].grad is not None
    assert (ours[2].grad == 0).all()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_numeric_gradients_of_both_orders(options: dict[str, Any]) -> None:
    shapes = [(1, 2, 3, 2), (1, 1, 4, 2), (1, 1, 4, 2), (3, 4), (2,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def call(*tensors: Tensor) -> Any:
        return attention(
            *tensors[:3], mask=tensors[3], sinks=tensors[4], return_lse=True, **options
        )

    visible = {"causal": options.get("causal"), "window": options.get("window")}
    if "lower_right" in visible.values() or not any(visible.values()):
        torch.autograd.gradcheck(call, inputs)
        torch.autograd.gradgradcheck(call, inputs)


def test_second_gradient_of_a_penalty() -> None:
    ours = leaves([torch.randn(1, 2, 5, 8) for _ in range(3)])
    theirs = leaves(ours, torch.float64)
    for tensors, function in ((ours, sdpa_opt), (theirs, expected_sdpa)):
        first = torch.autograd.grad(function(*tensors).sum(), tensors[0], create_graph=True)[0]
        first.square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine.grad, other.grad, torch.float32, 4)


def test_retain_graph_accumulates_the_same_again() -> None:
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    out = sdpa_opt(q, q, q).sum()
    out.backward(retain_graph=True)
    assert q.grad is not None
    once = q.grad.clone()
    out.backward()
    torch.testing.assert_close(q.grad, 2 * once)


def test_input_changed_in_place_is_refused_by_autograd() -> None:
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    k = torch.randn(1, 2, 5, 8)
    out = sdpa_opt(q, k, k)
    k.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_replays_dropout(reentrant: bool) -> None:
    q = torch.randn(1, 2, 33, 8, requires_grad=True)
    torch.manual_seed(5)
    direct = torch.autograd.grad(sdpa_opt(q, q, q, dropout_p=0.4).sum(), q)[0]
    torch.manual_seed(5)
    out = checkpoint(lambda t: sdpa_opt(t, t, t, dropout_p=0.4), q, use_reentrant=reentrant)
    out.sum().backward()
    assert torch.equal(q.grad, direct)


def test_saved_tensor_hooks_and_anomaly_mode() -> None:
    q = torch.randn(1, 2, 9, 8, requires_grad=True)
    plain = torch.autograd.grad(sdpa_opt(q, q, q).sum(), q)[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        out = sdpa_opt(q, q, q)
    assert torch.equal(torch.autograd.grad(out.sum(), q)[0], plain)
    with torch.autograd.detect_anomaly(check_nan=True):
        assert torch.equal(torch.autograd.grad(sdpa_opt(q, q, q).sum(), q)[0], plain)


def test_gradients_lie_as_their_inputs() -> None:
    q = torch.randn(2, 5, 3, 8).transpose(1, 2).requires_grad_()
    gradient = torch.autograd.grad(sdpa_opt(q, q.detach(), q.detach()).sum(), q)[0]
    assert gradient.stride() == q.stride()


def test_lazily_negated_gradient_of_the_output() -> None:
    inputs = [torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3)]
    grad_out = torch.randn(1, 2, 4, 8, dtype=torch.complex64).conj().imag
    assert grad_out.is_neg()
    found = torch.autograd.grad(sdpa_opt(*inputs), inputs, grad_out)
    expected = torch.autograd.grad(sdpa_opt(*inputs), inputs, grad_out.resolve_neg())
    assert all(map(torch.equal, found, expected))


def test_node_without_a_gradient_is_an_error() -> None:
    out = sdpa_opt(*leaves([torch.ones(1, 1, 2, 4)] * 3))
    with pytest.raises(TypeError, match="needs grad_out"):
        _core.backward_saved(out.grad_fn)
