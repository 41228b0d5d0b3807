# SPDX-License-Identifier: MIT
"""What the MPSGraph back ends of mps-sdpa 0.1 and 0.2 got wrong, tried on those of today.

test_mpsgraph.py runs this file on a fake Mac. What is shown elsewhere is named with its file.

| silently wrong there | here |
|---|---|
| storage offsets of inputs and gradients ignored | test_slices, test_a_gradient_that_cat_slices |
| key, value in another dtype read as bits | test_dtypes_do_not_mix |
| no gradient for the mask | on_fake_mac.py: test_gradients_and_the_mask_s_too |
| NaN in rows that see nothing, and in their gradients | test_rows_that_see_nothing |
| integer masks added to the scores | test_integer_masks_are_refused |
| dropout biased in bfloat16, NaN at 1, any probability taken | test_dropout_... |
| the scale rounded to 16 bits; products that overflow there | test_the_scale_is_exact, \
test_large_halves |
| metal_proto chosen by itself, without gradients | test_the_naive_kernel_is_not_chosen |

| crashed or refused there | here |
|---|---|
| 2, 3 and 5 dimensions; wide values; keys of another batch | test_shapes |
| options by position, `enable_gqa` | test_options_by_position |
| causal with a mask that broadcasts over queries | test_causal_with_padding |
| no memory for dropout, or in the backward pass; "Invalid buffer size" | \
test_no_memory_for_dropout; on_fake_mac.py: test_a_failure_leaves_the_call_to_the_next |
| tensors too large for MPSGraph | ../mpsgraph/graph_structure_test.cpp |
| a selector that macOS 14 lacks | ../apple_fake/mpsgraph_backend_test.cpp: AbsentGraph |
| autocast ignored | test_autocast |
| a compiler run by the import | test_the_import_compiles_nothing |
| a default back end without effect | test_backends.py: test_default_back_end_changes_what_runs |
| calls counted before they succeed | test_backends.py: test_a_failed_call_is_not_counted |
| commands that are missing, or that fail off macOS | test_cli.py |
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import fake_mac  # before all else: it is where the module looks for Apple's frameworks
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close as assert_close_in
from fake_mac import torch_on_mac
from torch import Tensor

import mps_sdpa
from mps_sdpa import attention, graphs, sdpa_opt

on_each = pytest.mark.parametrize("name", graphs.NAMES)


@pytest.fixture(autouse=True)
def _no_mistakes() -> Iterator[None]:
    yield from fake_mac.no_mistakes()


@pytest.fixture(autouse=True)
def _on_mac() -> Iterator[None]:
    with torch_on_mac():
        yield


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """torch's own function in float64."""
    if mask is not None and mask.is_floating_point():
        mask = mask.double()
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask, **options)


def check(out: Tensor, expected: Tensor, name: str) -> None:
    """The result is right, and the back end that was asked for gave it."""
    assert_close_in(out, expected, out.dtype)
    assert mps_sdpa.get_call_stats() == {name: 1}
    assert mps_sdpa.get_fallback_stats() == {}


# ---- Silently wrong ----


@on_each
def test_slices(name: str) -> None:
    k, v = torch.randn(2, 2, 3, 9, 16)
    q = torch.randn(5, 3, 7, 16)[3:5]
    check(sdpa_opt(q, k, v, backend=name), exact(q, k, v), name)


@on_each
def test_a_gradient_that_cat_slices(name: str) -> None:
    x = torch.randn(2, 2, 9, 16, requires_grad=True)
    weight = torch.randn(4, 2, 9, 16)
    halves = [sdpa_opt(x, x, x, backend=name) for _ in range(2)]
    (found,) = torch.autograd.grad((torch.cat(halves) * weight).sum(), x)
    wide = x.detach().double().requires_grad_()
    both = torch.cat([exact(wide, wide, wide)] * 2)
    (expected,) = torch.autograd.grad((both * weight).sum(), wide)
    assert_close_in(found, expected, found.dtype, 2)
    assert mps_sdpa.get_fallback_stats() == {}


@on_each
@pytest.mark.parametrize("which", [0, 1, 2])
def test_dtypes_do_not_mix(name: str, which: int) -> None:
    tensors = [torch.randn(1, 2, 9, 16).bfloat16() for _ in range(3)]
    tensors[which] = tensors[which].float()
    with pytest.raises(RuntimeError, match="dtype"):
        sdpa_opt(*tensors, backend=name)


@on_each
@pytest.mark.parametrize("additive", [False, True])
def test_rows_that_see_nothing(name: str, additive: bool) -> None:
    q, k, v = (torch.randn(1, 2, 9, 16, requires_grad=True) for _ in range(3))
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[0] = mask[5] = False
    given = torch.zeros(9, 9).masked_fill(~mask, -torch.inf) if additive else mask
    out = sdpa_opt(q, k, v, given, backend=name)
    assert out[..., [0, 5], :].eq(0).all()
    grads = torch.autograd.grad(out, (q, k, v), torch.randn(1, 2, 9, 16))
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[0][..., [0, 5], :].eq(0).all()
    check(out.detach(), exact(q, k, v, mask).detach(), name)


@on_each
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_integer_masks_are_refused(name: str, dtype: torch.dtype) -> None:
    q = torch.randn(1, 2, 9, 16)
    with pytest.raises(RuntimeError, match="attn_mask"):
        sdpa_opt(q, q, q, torch.ones(9, 9, dtype=dtype), backend=name)


@on_each
def test_dropout_keeps_and_scales_as_it_says(name: str) -> None:
    """Equal scores and values of one: a row's output is its share of kept keys, over 0.9."""
    q, v = torch.zeros(1, 1, 512, 16).bfloat16(), torch.ones(1, 1, 512, 16).bfloat16()
    out = attention(q, q, v, dropout=0.1, seed=7, backend=name)
    kept = out[0, 0, :, 0].double() * 0.9
    assert abs(kept.mean() - 0.9) < 2.4e-3  # four deviations of 512 * 512 draws
    expected = attention(q.float(), q.float(), v.float(), dropout=0.1, seed=7, backend=name)
    assert_close_in(out, expected.double(), torch.bfloat16)


@on_each
def test_dropout_of_everything_is_zero(name: str) -> None:
    q = torch.randn(1, 2, 9, 16, requires_grad=True)
    out = sdpa_opt(q, q, q, dropout_p=1.0, backend=name)
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert out.eq(0).all() and grad.eq(0).all()


@on_each
@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_dropout_is_a_probability(name: str, probability: float) -> None:
    q = torch.randn(1, 2, 9, 16)
    with pytest.raises((RuntimeError, ValueError), match="dropout"):
        sdpa_opt(q, q, q, dropout_p=probability, backend=name)


@on_each
@pytest.mark.parametrize("dim", [48, 72, 112])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_scale_is_exact(name: str, dim: int, scale: float | None) -> None:
    """One key: the log-sum-exp is the score. In bfloat16 these scales are off by a thousandth."""
    q, k = (torch.randn(1, 1, 1, dim).bfloat16() for _ in range(2))
    _, lse = attention(q, k, k, scale=scale, return_lse=True, backend=name)
    score = (scale or dim**-0.5) * (q.double() * k.double()).sum()
    torch.testing.assert_close(lse.double().flatten(), score.view(1), atol=1e-6, rtol=1e-6)
    assert mps_sdpa.get_call_stats() == {name: 1}


@on_each
def test_large_halves(name: str) -> None:
    """A product of query and key is 518400, and the gradient's are as large."""
    half = [torch.full((1, 1, 9, 64), x).half().requires_grad_() for x in (90.0, 90.0, 3.0)]
    out = sdpa_opt(*half, backend=name)
    grads = torch.autograd.grad(out, half, torch.full_like(out, 3000))
    assert out.eq(3).all()
    assert all(grad.isfinite().all() for grad in grads)
    assert mps_sdpa.get_call_stats() == {name: 1}


def test_the_naive_kernel_is_not_chosen() -> None:
    q = torch.randn(1, 2, 9, 16).bfloat16().requires_grad_()
    with mock.patch.object(graphs, "reason_against", lambda name: "It is not there."):
        out = sdpa_opt(q, q, q)
        (grad,) = torch.autograd.grad(out.sum(), q)
    assert mps_sdpa.get_call_stats() == {"stock": 1}
    assert grad.isfinite().all()


# ---- Crashed or refused ----

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "2 dimensions": [(9, 16), (7, 16), (7, 16)],
    "3 dimensions": [(3, 9, 16), (3, 7, 16), (3, 7, 16)],
    "5 dimensions": [(2, 3, 2, 9, 16), (2, 3, 2, 7, 16), (2, 3, 2, 7, 16)],
    "wide values": [(1, 2, 9, 16), (1, 2, 7, 16), (1, 2, 7, 24)],
    "keys of one batch entry": [(3, 2, 9, 16), (1, 2, 7, 16), (1, 2, 7, 16)],
    "one query": [(2, 2, 1, 16), (2, 2, 33, 16), (2, 2, 33, 16)],
}


@on_each
@pytest.mark.parametrize("shapes", SHAPES)
def test_shapes(name: str, shapes: str) -> None:
    tensors = [torch.randn(shape, requires_grad=True) for shape in SHAPES[shapes]]
    wide = [x.detach().double().requires_grad_() for x in tensors]
    out, expected = sdpa_opt(*tensors, backend=name), exact(*wide)
    grad = torch.randn(out.shape)
    found = torch.autograd.grad(out, tensors, grad)
    for got, want in zip(found, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        assert_close_in(got, want, got.dtype, 2)
    check(out.detach(), expected.detach(), name)


@on_each
def test_options_by_position(name: str) -> None:
    q, k = torch.randn(1, 4, 9, 16), torch.randn(1, 2, 9, 16)
    mps_sdpa.set_default_backend(name)
    try:
        out = sdpa_opt(q, k, k, None, 0.0, True, scale=0.3, enable_gqa=True)
    finally:
        mps_sdpa.set_default_backend("auto")
    check(out, exact(q, k, k, is_causal=True, scale=0.3, enable_gqa=True), name)


@on_each
def test_causal_with_padding(name: str) -> None:
    q = torch.randn(2, 2, 9, 16)
    mask = torch.zeros(2, 1, 1, 9).masked_fill(torch.arange(9) > 6, -torch.inf)
    both = mask + torch.full((9, 9), -torch.inf).triu(1)
    check(attention(q, q, q, mask=mask, causal=True, backend=name), exact(q, q, q, both), name)


@on_each
@pytest.mark.parametrize("training", [False, True])
def test_no_memory_for_dropout(name: str, training: bool) -> None:
    q = torch.randn(1, 2, 9, 16, requires_grad=training)

    def run() -> Tensor:
        return attention(q, q, q, dropout=0.3, seed=5, backend=name)

    expected, out = run(), run()
    grad = torch.autograd.grad(expected.sum(), q)[0] if training else None
    fake_mac.limit_memory(0)
    if grad is not None:
        assert_close_in(torch.autograd.grad(out.sum(), q)[0], grad.double(), q.dtype, 2)
    else:
        assert_close_in(run(), expected.double(), q.dtype)
    assert any("no memory" in reason for reason in mps_sdpa.get_fallback_stats())


@on_each
def test_autocast(name: str) -> None:
    q = torch.randn(1, 2, 9, 16)
    with torch.autocast("mps", torch.bfloat16):
        out = sdpa_opt(q, q, q, backend=name)
    assert out.dtype == torch.bfloat16
    half = q.bfloat16()
    check(out, exact(half, half, half), name)


def test_the_import_compiles_nothing() -> None:
    program = "import sys, mps_sdpa; sys.exit('torch.utils.cpp_extension' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
