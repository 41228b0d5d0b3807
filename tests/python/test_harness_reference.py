# SPDX-License-Identifier: MIT
"""The tile-wise reference against the library's own oracle, which defines the mathematics."""

from __future__ import annotations

import pytest
import torch

from mps_sdpa import _core
from mps_sdpa.engine import attach
from mps_sdpa.harness import reference
from mps_sdpa.harness.cases import Case, suite
from mps_sdpa.harness.data import make_inputs
from mps_sdpa.harness.philox import keep_mask

_SEED = 2**40 + 5
_CAUSAL = {"none": 0, "upper_left": 1, "lower_right": 2}


def _sample() -> list[Case]:
    """Cases spread over the conformance suite that fit the oracle's plain layouts."""
    every = [case for case in suite("conformance") if case.kv_len and case.q_len]
    return [case for case in every if not case.layout.startswith("huge")][::37]


def _options(case: Case) -> _core.Options:
    return _core.Options(
        scale=case.scale,
        causal=_CAUSAL[case.causal],
        window=case.window,
        softcap=case.softcap,
        dropout=case.dropout,
        seed=_SEED,
    )


@pytest.mark.parametrize("case", _sample(), ids=lambda case: case.name)
def test_agrees_with_the_oracle(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    attach()
    monkeypatch.setattr(reference, "_TILE_ELEMENTS", 300)  # several tiles even for small cases
    inputs = make_inputs(case, seed=3)
    found = reference.backward(case, inputs, seed=_SEED)
    packed = (inputs.query, inputs.key, inputs.value, inputs.mask, inputs.sinks)
    out, lse = torch.empty_like(found.out), torch.empty_like(found.lse)
    _core.reference_forward(packed, _options(case), out, lse)
    torch.testing.assert_close(found.out, out, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.lse, lse, rtol=1e-9, atol=1e-11)
    gradients = {
        name: torch.zeros(leaf.shape, dtype=torch.float64) for name, leaf in inputs.leaves().items()
    }
    wanted = tuple(gradients.get(name) for name in ("query", "key", "value", "mask", "sinks"))
    _core.reference_backward(packed, _options(case), inputs.grad_out, inputs.grad_lse, wanted)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-9, atol=1e-10)


def test_dropout_is_the_engines_bit_for_bit() -> None:
    attach()
    heads, rows, keys = 3, 9, 23
    expected = torch.empty(heads, rows, keys, dtype=torch.bool)
    _core.keep_mask(_core.Options(dropout=0.3, seed=_SEED), expected)
    whole = keep_mask(0.3, _SEED, slice(0, heads), slice(0, rows), slice(0, keys))
    part = keep_mask(0.3, _SEED, slice(1, heads), slice(2, 7), slice(5, 18))
    assert torch.equal(whole, expected)
    assert torch.equal(part, expected[1:, 2:7, 5:18])


def test_agrees_with_torch_in_float64() -> None:
    case = Case("t", "t", "float64", 2, 4, 2, 33, 47, 16, 24, causal="upper_left")
    inputs = make_inputs(case)
    inputs.require_grad()
    out = torch.nn.functional.scaled_dot_product_attention(
        inputs.query, inputs.key, inputs.value, is_causal=True, enable_gqa=True
    )
    wanted = torch.autograd.grad(out, list(inputs.leaves().values()), inputs.grad_out)
    found = reference.backward(case, inputs)
    torch.testing.assert_close(found.out, out.detach())
    for gradient, expected in zip(found.gradients.values(), wanted, strict=True):
        torch.testing.assert_close(gradient, expected)
