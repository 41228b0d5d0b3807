# SPDX-License-Identifier: MIT
"""sdpa_opt takes what torch takes and gives what torch gives."""

from __future__ import annotations

import inspect
import typing

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, expected_sdpa

import mps_sdpa
from mps_sdpa import sdpa_opt

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def test_signature_is_torchs() -> None:
    parameters = inspect.signature(sdpa_opt).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["query", "key", "value", "attn_mask", "dropout_p", "is_causal"]
    assert [parameters[n].default for n in positional[3:]] == [None, 0.0, False]
    keywords = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert keywords == ["scale", "enable_gqa", "backend"]


def test_hints_resolve() -> None:
    for name in mps_sdpa.__all__:
        if callable(getattr(mps_sdpa, name)):
            assert "return" in typing.get_type_hints(getattr(mps_sdpa, name))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3, -0.5])
def test_values_shape_and_dtype(dtype: torch.dtype, causal: bool, scale: float | None) -> None:
    q, k, v = (torch.randn(2, 3, n, 24, dtype=dtype) for n in (19, 33, 33))
    out = sdpa_opt(q, k, v, None, 0.0, causal, scale=scale)
    assert out.dtype == dtype
    assert_close(out, expected_sdpa(q, k, v, None, causal, scale), dtype)
    assert mps_sdpa.get_call_stats() == {"cpu": 1}
    assert mps_sdpa.get_fallback_stats() == {}


def test_output_lies_as_torchs() -> None:
    q = torch.randn(2, 3, 5, 8)
    swapped = q.transpose(1, 2).contiguous().transpose(1, 2)
    for query, key in ((q, q), (swapped, swapped), (swapped, q), (q, swapped), (q[0], q[0])):
        expected = F.scaled_dot_product_attention(query, key, key)
        assert sdpa_opt(query, key, key).stride() == expected.stride()


SHAPES = {
    "2d": [(5, 8), (7, 8), (7, 8)],
    "3d": [(3, 5, 8), (3, 7, 8), (3, 7, 8)],
    "5d": [(2, 3, 2, 5, 8), (2, 3, 2, 7, 8), (2, 3, 2, 7, 8)],
    "6d": [(2, 1, 3, 2, 5, 8), (1, 2, 3, 2, 7, 8), (2, 2, 1, 2, 7, 8)],
    "8d": [(1, 2, 1, 1, 2, 2, 5, 8), (2, 1, 1, 1, 2, 2, 7, 8), (2, 2, 1, 1, 2, 2, 7, 8)],
    "2d query": [(5, 8), (2, 3, 7, 8), (2, 3, 7, 8)],
    "5d query": [(4, 2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)],
    "batch of keys": [(1, 3, 5, 8), (4, 3, 7, 8), (4, 3, 7, 8)],
    "batch of queries": [(4, 3, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8)],
    "batch of values": [(1, 3, 5, 8), (1, 3, 7, 8), (4, 3, 7, 8)],
    "one key head": [(2, 4, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)],
    "one value head": [(2, 4, 5, 8), (2, 4, 7, 8), (2, 1, 7, 8)],
    "one query head": [(2, 1, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)],
    "value narrower": [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3)],
    "value wider": [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 40)],
    "one row": [(2, 4, 1, 8), (2, 4, 7, 8), (2, 4, 7, 8)],
    "one key": [(2, 4, 5, 8), (2, 4, 1, 8), (2, 4, 1, 8)],
    "one element": [(1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1)],
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("causal", [False, True])
def test_ranks_and_broadcasting(shapes: list[tuple[int, ...]], causal: bool) -> None:
    q, k, v = (torch.randn(shape) for shape in shapes)
    out = sdpa_opt(q, k, v, is_causal=causal)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert out.shape == expected.shape
    assert_close(out, expected, torch.float32)


EMPTY = {
    "no keys": [(2, 4, 5, 8), (2, 4, 0, 8), (2, 4, 0, 8)],
    "no queries": [(2, 4, 0, 8), (2, 4, 5, 8), (2, 4, 5, 8)],
    "no batch": [(0, 4, 5, 8), (0, 4, 5, 8), (0, 4, 5, 8)],
    "no heads": [(2, 0, 5, 8), (2, 0, 5, 8), (2, 0, 5, 8)],
    "no dim": [(2, 4, 5, 0), (2, 4, 5, 0), (2, 4, 5, 8)],
    "no value dim": [(2, 4, 5, 8), (2, 4, 5, 8), (2, 4, 5, 0)],
}


@pytest.mark.parametrize("shapes", EMPTY.values(), ids=EMPTY.keys())
def test_empty(shapes: list[tuple[int, ...]]) -> None:
    ours = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    out, expected = sdpa_opt(*ours), F.scaled_dot_product_attention(*theirs)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    for tensor in ours:
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.isnan().any()


STRIDES = {
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "sliced": lambda t: torch.nn.functional.pad(t, (3, 2, 1, 1))[..., 1:-1, 3:-2],
    "offset": lambda t: torch.cat([t.new_zeros(5), t.flatten()])[5:].view(t.shape),
    "expanded": lambda t: t[:1].expand_as(t),
    "flipped dims": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "last stride 2": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "column expanded": lambda t: t[..., :1].expand_as(t),
    "row expanded": lambda t: t[..., :1, :].expand_as(t),
}


@pytest.mark.parametrize("view", STRIDES.values(), ids=STRIDES.keys())
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("which", ["query", "key", "value", "all"])
def test_strides(view: typing.Any, dtype: torch.dtype, which: str) -> None:
    tensors = {n: torch.randn(2, 3, 21, 16, dtype=dtype) for n in ("query", "key", "value")}
    for name in tensors:
        if which in (name, "all"):
            tensors[name] = view(tensors[name])
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    out = sdpa_opt(**tensors, is_causal=True)
    assert_close(out, expected_sdpa(**tensors, is_causal=True), dtype)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name])


MASKS = {
    "full": (2, 4, 9, 13),
    "heads": (1, 4, 9, 13),
    "batch": (2, 1, 9, 13),
    "matrix": (9, 13),
    "three": (4, 9, 13),
    "keys": (2, 1, 1, 13),
    "queries": (2, 1, 9, 1),
    "one": (1, 1, 1, 1),
    "vector": (13,),
    "scalar": (),
}


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("dtype", [torch.bool, *FLOATS])
@pytest.mark.parametrize("causal", [False, True])
def test_masks(shape: tuple[int, ...], dtype: torch.dtype, causal: bool) -> None:
    q, k, v = (torch.randn(2, 4, n, 8) for n in (9, 13, 13))
    mask = torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.rand(shape) < 0.7
    out = sdpa_opt(q, k, v, mask, is_causal=causal)
    expected = expected_sdpa(q, k, v, mask, causal)
    assert not out.isnan().any()
    assert_close(out, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_masks(dtype: torch.dtype) -> None:
    q = torch.randn(2, 4, 9, 8, dtype=dtype)
    masks = [
        torch.randn(2, 4, 9, 9).transpose(-1, -2),
        torch.randn(2, 1, 9, 1).expand(2, 4, 9, 9),
        torch.randn(2, 4, 9, 18)[..., ::2],
        (torch.rand(9, 11) < 0.6)[:, 1:-1],
    ]
    for mask in masks:
        assert_close(sdpa_opt(q, q, q, mask), expected_sdpa(q, q, q, mask), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_fully_masked_rows_are_zero(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 2, 6, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    for one in (mask, torch.zeros(6, 6).masked_fill(~mask, float("-inf")).to(dtype)):
        out = sdpa_opt(q, k, v, one)
        assert (out[:, :, 2] == 0).all()
        assert not out.isnan().any()
        for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
            assert not gradient.isnan().any()


def test_hidden_keys_may_hold_nan() -> None:
    q, k, v = (torch.randn(1, 2, 6, 8) for _ in range(3))
    mask = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    mask[..., 4:] = False
    clean = sdpa_opt(q, k, v, mask)
    k[:, :, 4:] = float("nan")
    v[:, :, 4:] = float("nan")
    torch.testing.assert_close(sdpa_opt(q, k, v, mask), clean)


def test_nan_reaches_the_rows_that_see_it() -> None:
    q, k, v = (torch.randn(1, 1, 6, 8) for _ in range(3))
    k[0, 0, 3, 0] = float("nan")
    rows = sdpa_opt(q, k, v, is_causal=True).isnan().any(-1)[0, 0]
    assert rows.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("heads", [(8, 2, 2), (8, 1, 1), (6, 3, 3), (8, 4, 2), (8, 2, 4)])
def test_grouped_heads(heads: tuple[int, int, int], flag: bool) -> None:
    q, k, v = (torch.randn(2, n, 11, 8) for n in heads)
    out = sdpa_opt(q, k, v, enable_gqa=flag)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert_close(out, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8).half(), torch.randn(2, 2, 7, 8)
    mask = torch.randn(7, 7)
    with torch.autocast("cpu", dtype=dtype):
        out, expected = sdpa_opt(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask)
        assert sdpa_opt(q.double(), q.double(), q.double()).dtype == torch.float64
    assert out.dtype == expected.dtype == dtype
    assert_close(out, expected, dtype)


def test_autocast_gradients_have_the_inputs_dtype() -> None:
    q = torch.randn(1, 2, 7, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sdpa_opt(q, q, q)
    out.float().sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


def test_negated_views_are_read_as_they_are_meant() -> None:
    q = torch.complex(torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)).conj().imag
    assert q.is_neg()
    assert_close(sdpa_opt(q, q, q), F.scaled_dot_product_attention(q, q, q), torch.float32)


def test_inference_mode_and_parameters() -> None:
    q = torch.nn.Parameter(torch.randn(1, 2, 5, 8))
    with torch.inference_mode():
        out = sdpa_opt(q, q, q)
    assert out.is_inference() or not out.requires_grad
    assert sdpa_opt(q, q, q).requires_grad
    assert type(sdpa_opt(q, q, q)) is torch.Tensor


def test_default_device_context_does_not_matter() -> None:
    q = torch.randn(1, 2, 5, 8)
    with torch.device("meta"):
        out = sdpa_opt(q, q, q)
    assert out.device.type == "cpu"
    assert mps_sdpa.get_fallback_stats() == {}


def test_result_is_the_same_every_time() -> None:
    q, k, v = (torch.randn(2, 4, 150, 32) for _ in range(3))
    first = sdpa_opt(q, k, v)
    assert all(torch.equal(first, sdpa_opt(q, k, v)) for _ in range(3))
