# SPDX-License-Identifier: MIT
"""Calls that hypothesis makes up: shapes, strides, dtypes and options, against float64."""

from __future__ import annotations

from typing import Any

import torch
from comparison import assert_close, expected_sdpa, leaves
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mps_sdpa import attention, composite, sdpa_opt
from mps_sdpa.settings import Causal, Settings

BOUNDED = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
lengths = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 48, 63, 64, 65, 129]))
dims = st.sampled_from([1, 2, 3, 8, 15, 16, 17, 32, 40, 64])
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def _laid_out(draw: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random numbers in a drawn order of dimensions, with margins and an offset."""
    order = draw(st.permutations(range(len(shape) - 1)))
    margins = [draw(st.integers(0, 2)) for _ in shape]
    whole = torch.randn([shape[d] + margins[d] for d in (*order, len(shape) - 1)])
    back = [order.index(d) for d in range(len(shape) - 1)]
    view = whole.to(dtype).permute(*back, len(shape) - 1)
    return view[tuple(slice(m, m + n) for m, n in zip(margins, shape, strict=True))]


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    dtype = draw(dtypes)
    batch, kv_heads, group = (draw(st.integers(1, 3)) for _ in range(3))
    q_len, kv_len, qk_dim, v_dim = draw(lengths), draw(lengths), draw(dims), draw(dims)
    heads = kv_heads * group
    torch.manual_seed(draw(st.integers(0, 1000)))
    shapes = [
        (batch, heads, q_len, qk_dim),
        (batch, kv_heads, kv_len, qk_dim),
        (batch, kv_heads, kv_len, v_dim),
    ]
    tensors = [_laid_out(draw, shape, dtype) for shape in shapes]
    mask = None
    kind = draw(st.sampled_from(["none", "bool", "float"]))
    if kind != "none":
        full = (batch, heads, q_len, kv_len)
        shape = tuple(n if draw(st.booleans()) else 1 for n in full)
        rank = draw(st.integers(2, 4))
        mask = torch.randn(shape[-rank:] if all(n == 1 for n in shape[:-rank]) else shape)
        mask = mask > -0.5 if kind == "bool" else mask.to(draw(dtypes))
    return {"tensors": tensors, "mask": mask, "dtype": dtype}


def _weight(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double()


def _compare(ours: list[Tensor], theirs: list[Tensor], dtype: torch.dtype) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        scale = max(1.0, other.grad.abs().max().item()) if other.grad.numel() else 1.0
        assert_close(mine.grad / scale, other.grad / scale, dtype, 2)


@BOUNDED
@given(problem=problems(), causal=st.booleans(), scale=st.sampled_from([None, 0.2, 1.0]))
def test_as_torchs_math_path(problem: dict[str, Any], causal: bool, scale: float | None) -> None:
    tensors, mask, dtype = problem["tensors"], problem["mask"], problem["dtype"]
    inputs = tensors if mask is None or mask.dtype == torch.bool else [*tensors, mask]
    ours, theirs = leaves(inputs), leaves(inputs, torch.float64)
    masks = [mask, mask] if len(inputs) == 3 else [ours[3], theirs[3]]
    out = sdpa_opt(*ours[:3], masks[0], is_causal=causal, scale=scale)
    expected = expected_sdpa(*theirs[:3], masks[1], causal, scale)
    assert_close(out, expected, dtype)
    (out.double() * _weight(out)).sum().backward()
    (expected * _weight(out)).sum().backward()
    _compare(ours[:3], theirs[:3], dtype)


@BOUNDED
@given(
    problem=problems(),
    causal=st.sampled_from(list(Causal)),
    window=st.tuples(st.integers(-1, 9), st.integers(-1, 9)),
    softcap=st.sampled_from([0.0, 1.5]),
    with_sinks=st.booleans(),
    dropout=st.sampled_from([0.0, 0.25]),
)
def test_every_option(
    problem: dict[str, Any],
    causal: Causal,
    window: tuple[int, int],
    softcap: float,
    with_sinks: bool,
    dropout: float,
) -> None:
    tensors, mask, dtype = problem["tensors"], problem["mask"], problem["dtype"]
    sinks = torch.randn(tensors[0].size(1)) if with_sinks else None
    ours, theirs = leaves(tensors), leaves(tensors, torch.float64)
    options = Settings(None, causal, window, softcap, dropout, seed=5)
    word = [False, True, "lower_right"][int(causal)]
    out, lse = attention(
        *ours, mask=mask, causal=word, window=window, softcap=softcap, sinks=sinks,
        dropout=dropout, seed=5, return_lse=True,
    )  # fmt: skip
    expected, expected_lse = composite.attention(*theirs, mask, sinks, options)
    assert_close(out, expected, dtype)
    assert_close(lse, expected_lse, dtype)
    (out.double() * _weight(out)).sum().backward()
    (expected * _weight(out)).sum().backward()
    _compare(ours, theirs, dtype)
