# SPDX-License-Identifier: MIT
"""enable() reaches models as they are; disable() leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as imported_early

import mps_sdpa
from mps_sdpa import patch

ORIGINAL = F.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    mps_sdpa.disable()
    assert F.scaled_dot_product_attention is ORIGINAL
    assert torch.backends.mha.get_fastpath_enabled()
    mps_sdpa.reset_call_stats()
    q = torch.randn(1, 2, 5, 8)
    imported_early(q, q, q)
    assert mps_sdpa.get_call_stats() == {}


def _calls() -> int:
    return mps_sdpa.get_call_stats().get("cpu", 0)


def test_function_is_ours_while_enabled() -> None:
    q = torch.randn(1, 2, 5, 8)
    expected = ORIGINAL(q, q, q, None, 0.0, True)
    mps_sdpa.enable()
    mps_sdpa.enable()
    torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q, is_causal=True), expected)
    assert _calls() == 1
    mps_sdpa.disable()
    assert F.scaled_dot_product_attention is ORIGINAL
    mps_sdpa.disable()


def test_contexts_nest_and_threads_share() -> None:
    with mps_sdpa.enabled():
        with mps_sdpa.enabled():
            mps_sdpa.enable()
        assert F.scaled_dot_product_attention is not ORIGINAL
        mps_sdpa.disable()
        assert F.scaled_dot_product_attention is not ORIGINAL
    assert F.scaled_dot_product_attention is ORIGINAL
    barrier = threading.Barrier(4)
    wrong: list[str] = []

    def work() -> None:
        q = torch.randn(1, 2, 5, 8)
        for _ in range(20):
            barrier.wait()
            with mps_sdpa.enabled():
                if F.scaled_dot_product_attention is ORIGINAL:
                    wrong.append("not enabled")
                F.scaled_dot_product_attention(q, q, q)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert _calls() == 80


def test_an_exception_ends_the_context() -> None:
    with pytest.raises(KeyError), mps_sdpa.enabled():
        raise KeyError
    assert patch._undo is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_early_import_forward_and_backward(masked: bool, kv_heads: int) -> None:
    q = torch.randn(2, 4, 9, 8, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, 13, 8, requires_grad=True) for _ in range(2))
    mask = torch.rand(2, 1, 9, 13) < 0.7 if masked else None
    options = {"attn_mask": mask, "enable_gqa": kv_heads != 4}
    expected = imported_early(q, k, v, **options)
    gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
    with mps_sdpa.enabled():
        out = imported_early(q, k, v, **options)
        assert _calls() == 1
        mine = torch.autograd.grad(out.square().sum(), (q, k, v))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(mine, gradients)


def test_forward_and_backward_may_be_on_either_side() -> None:
    q = torch.randn(2, 4, 9, 8, requires_grad=True)
    expected = torch.autograd.grad(imported_early(q, q, q).square().sum(), q)
    with mps_sdpa.enabled():
        inside = imported_early(q, q, q)
    torch.testing.assert_close(torch.autograd.grad(inside.square().sum(), q), expected)
    outside = imported_early(q, q, q)
    with mps_sdpa.enabled():
        torch.testing.assert_close(torch.autograd.grad(outside.square().sum(), q), expected)


def test_stock_stays_stock() -> None:
    q = torch.randn(1, 2, 5, 8)
    expected = ORIGINAL(q, q, q)
    with mps_sdpa.enabled():
        assert torch.equal(mps_sdpa.sdpa_opt(q, q, q, backend="stock"), expected)
        mps_sdpa.set_default_backend("stock")
        assert torch.equal(F.scaled_dot_product_attention(q, q, q), expected)
    assert _calls() == 0


def test_math_is_respected() -> None:
    q = torch.randn(1, 2, 5, 8)
    with mps_sdpa.enabled(), sdpa_kernel([SDPBackend.MATH]):
        F.scaled_dot_product_attention(q, q, q)
        imported_early(q, q, q)
    assert _calls() == 0
    with mps_sdpa.enabled(), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        F.scaled_dot_product_attention(q, q, q)
    assert _calls() == 1


@pytest.mark.parametrize("training", [False, True])
def test_multihead_attention(training: bool) -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=True).train(training)
    x = torch.randn(2, 7, 16)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    with torch.set_grad_enabled(training):
        expected = layer(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        with mps_sdpa.enabled():
            out = layer(x, x, x, key_padding_mask=padding, need_weights=False)[0]
    torch.testing.assert_close(out, expected)
    assert _calls() == 1


@pytest.mark.parametrize("training", [False, True])
def test_encoder_and_decoder(training: bool) -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 2
    ).train(training)
    decoder = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True).train(training)
    x = torch.randn(2, 7, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(7)

    def run() -> Tensor:
        memory = encoder(x, mask=causal, is_causal=True)
        return decoder(x, memory, tgt_mask=causal, tgt_is_causal=True)

    with torch.set_grad_enabled(training):
        expected = run()
        with mps_sdpa.enabled():
            out = run()
    torch.testing.assert_close(out, expected)
    assert _calls() == 4


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k, is_causal=True)


def test_traced_scripted_and_exported_graphs() -> None:
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    expected = Attention()(q, k)
    graphs = [
        torch.jit.trace(Attention(), (q, k)),
        torch.jit.script(Attention()),
        torch.export.export(Attention(), (q, k)).module(),
    ]
    for count, graph in enumerate(graphs, 1):
        with mps_sdpa.enabled():
            torch.testing.assert_close(graph(q, k), expected)
        assert _calls() == count
    with mps_sdpa.enabled():
        inside = [torch.jit.trace(Attention(), (q, k)), torch.jit.script(Attention())]
    for graph in inside:
        torch.testing.assert_close(graph(q, k), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model(backend: str) -> None:
    torch._dynamo.reset()
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    expected = torch.autograd.grad(Attention()(q, q.detach()).sum(), q)
    with mps_sdpa.enabled():
        model = torch.compile(Attention(), fullgraph=True, backend=backend)
        out = model(q, q.detach())
        mine = torch.autograd.grad(out.sum(), q)
    torch.testing.assert_close(mine, expected)
    assert _calls() == 1
