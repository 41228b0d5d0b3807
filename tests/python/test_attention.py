# SPDX-License-Identifier: MIT
"""The options of attention() and packed sequences, against the formula in torch operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import assert_close, expected_sdpa, leaves

import mps_sdpa
from mps_sdpa import _core, attention, composite, sdpa_opt, varlen_attention
from mps_sdpa.settings import Causal, Settings


def _tensors(q_len: int = 9, kv_len: int = 13, heads: int = 4, kv_heads: int = 2) -> Any:
    q = torch.randn(2, heads, q_len, 8)
    return q, torch.randn(2, kv_heads, kv_len, 8), torch.randn(2, kv_heads, kv_len, 8)


@pytest.mark.parametrize(("q_len", "kv_len"), [(9, 13), (13, 9), (7, 7), (1, 13)])
@pytest.mark.parametrize("causal", list(Causal))
@pytest.mark.parametrize("window", [(-1, -1), (3, 0), (0, 0), (2, -1), (-1, 2), (4, 1)])
def test_causal_and_window(
    q_len: int, kv_len: int, causal: Causal, window: tuple[int, int]
) -> None:
    q, k, v = _tensors(q_len, kv_len)
    word = {0: False, 1: True, 2: "lower_right"}[int(causal)]
    out, lse = attention(q, k, v, causal=word, window=window, return_lse=True)
    settings = Settings(causal=causal, window=window)
    expected = composite.attention(q.double(), k.double(), v.double(), None, None, settings)
    assert_close(out, expected[0], torch.float32)
    assert_close(lse, expected[1], torch.float32)


def test_upper_left_is_torchs() -> None:
    q, k, v = _tensors()
    out = attention(q, k, v, causal="upper_left")
    assert torch.equal(out, attention(q, k, v, causal=True))
    assert_close(out, expected_sdpa(q, k, v, None, True), torch.float32)


def test_lower_right_is_the_end_of_the_square() -> None:
    q, k, v = _tensors(13, 13)
    whole = attention(q, k, v, causal=True)
    torch.testing.assert_close(
        attention(q[:, :, -4:], k, v, causal="lower_right"), whole[:, :, -4:]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_layout_and_dtype(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in _tensors())
    swapped = [t.transpose(1, 2).contiguous() for t in (q, k, v)]
    out, lse = attention(*swapped, layout="blhd", return_lse=True)
    plain, plain_lse = attention(q, k, v, return_lse=True)
    assert torch.equal(out, plain.transpose(1, 2))
    assert torch.equal(lse, plain_lse)
    assert out.is_contiguous()
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_softcap_and_sinks() -> None:
    q, k, v = _tensors()
    sinks = torch.randn(4)
    out = attention(q, k, v, softcap=0.7, sinks=sinks, mask=torch.randn(9, 13))
    assert not out.isnan().any()
    plain = attention(q, k, v, sinks=torch.full((4,), float("-inf")))
    assert_close(plain, attention(q, k, v), torch.float32)


def test_rows_that_see_nothing() -> None:
    q, k, v = _tensors(13, 9)
    out, lse = attention(q, k, v, causal="lower_right", return_lse=True)
    assert (out[:, :, :4] == 0).all()
    assert (lse[:, :, :4] == float("-inf")).all()


def test_seed_fixes_dropout_and_mask_is_the_oracles() -> None:
    q = torch.randn(2, 2, 17, 8)
    value = torch.eye(17).expand(2, 2, 17, 17)
    first = attention(q, q, value, dropout=0.3, seed=11)
    assert torch.equal(first, attention(q, q, value, dropout=0.3, seed=11))
    assert not torch.equal(first, attention(q, q, value, dropout=0.3, seed=12))
    formula = attention(q, q, value, dropout=0.3, seed=11, backend="stock")
    torch.testing.assert_close(formula, first)
    kept = torch.empty(4, 17, 17, dtype=torch.bool)
    _core.keep_mask(_core.Options(dropout=0.3, seed=11), kept)
    assert torch.equal(first != 0, kept.view(2, 2, 17, 17))
    assert_close(
        first[kept.view(first.shape)],
        (attention(q, q, value) / 0.7)[kept.view(first.shape)],
        torch.float32,
    )


def test_dropout_follows_torchs_generator() -> None:
    q = torch.randn(1, 2, 33, 8)
    torch.manual_seed(3)
    first, second = sdpa_opt(q, q, q, dropout_p=0.5), sdpa_opt(q, q, q, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(sdpa_opt(q, q, q, dropout_p=0.5), first)
    assert torch.equal(sdpa_opt(q, q, q, dropout_p=0.5), second)
    assert not torch.equal(first, second)
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        third = sdpa_opt(q, q, q, dropout_p=0.5)
    torch.set_rng_state(state)
    assert torch.equal(sdpa_opt(q, q, q, dropout_p=0.5), third)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_dropout_keeps_the_right_share(p: float) -> None:
    value = torch.eye(200)[None, None]
    q = torch.zeros(1, 1, 200, 8)
    out = sdpa_opt(q, q, value, dropout_p=p)
    assert abs((out == 0).double().mean().item() - p) < 0.01
    assert not out.isnan().any()


def test_any_backend_draws_nothing_without_dropout() -> None:
    q = torch.randn(1, 1, 4, 8)
    state = torch.get_rng_state()
    sdpa_opt(q, q, q)
    attention(q, q, q, dropout=0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


PACKS = [([5, 0, 7, 1], [5, 3, 9, 1]), ([4], [4]), ([0, 0], [2, 0]), ([3, 3], [1, 8])]


@pytest.mark.parametrize(("q_lens", "k_lens"), PACKS)
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"causal": "lower_right"}, {"window": (2, 1), "softcap": 2.0}]
)
def test_varlen(q_lens: list[int], k_lens: list[int], options: dict[str, Any]) -> None:
    q = torch.randn(sum(q_lens), 4, 8)
    k, v = torch.randn(sum(k_lens), 2, 8), torch.randn(sum(k_lens), 2, 6)
    ours, theirs = leaves([q, k, v]), leaves([q, k, v])
    starts = [torch.tensor([0, *lens]).cumsum(0, dtype=torch.int32) for lens in (q_lens, k_lens)]
    out, lse = varlen_attention(
        *ours, *starts, max(q_lens), max(k_lens), return_lse=True, **options
    )
    assert out.shape == (sum(q_lens), 4, 6)
    assert lse.shape == (4, sum(q_lens))
    pieces = []
    for a, b, c in zip(
        *(t.split(n) for t, n in zip(theirs, (q_lens, k_lens, k_lens), strict=True)), strict=True
    ):
        heads = [t.transpose(0, 1)[None] for t in (a, b, c)]
        pieces.append(attention(*heads, return_lse=True, **options))
    expected = torch.cat([o[0].transpose(0, 1) for o, _ in pieces])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, torch.cat([each[0] for _, each in pieces], -1))
    out.square().sum().backward()
    expected.square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_oracle_from_python_agrees() -> None:
    q, k, v = _tensors()
    options = _core.Options(causal=1)
    out, lse = torch.empty(2, 4, 9, 8, dtype=torch.float64), torch.empty(2, 4, 9)
    _core.reference_forward((q, k, v, None, None), options, out, lse)
    assert_close(out, expected_sdpa(q, k, v, None, True), torch.float32)
    leaf = leaves([q, k, v], torch.float64)
    expected_sdpa(*leaf, None, True).sum().backward()
    grads = tuple(torch.empty(t.shape, dtype=torch.float64) for t in (q, k, v))
    _core.reference_backward(
        (q, k, v, None, None), options, torch.ones(2, 4, 9, 8), None, (*grads, None, None)
    )
    for gradient, tensor in zip(grads, leaf, strict=True):
        assert_close(gradient, tensor.grad, torch.float32)


def test_cases_reach_python() -> None:
    names = _core.suite_names()
    assert {"realistic", "correctness", "extended", "general", "conformance"} <= set(names)
    assert len(_core.cases("correctness")) == 1953
    assert len(_core.cases("general")) == 540
    first = _core.cases("realistic")[0]
    assert (first["name"], first["q_len"], first["dtype"]) == ("S1", 256, "bfloat16")
    with pytest.raises(RuntimeError, match="there is no suite 'x'; known are realistic"):
        _core.cases("x")


def test_threads_can_be_set() -> None:
    before = _core.thread_count()
    _core.set_thread_count(1)
    assert _core.thread_count() == 1
    _core.set_thread_count(0)
    assert _core.thread_count() == before
    assert mps_sdpa.get_fallback_stats() == {}
