# SPDX-License-Identifier: MIT
"""Compiled graphs, the operators' own checks, transforms and forward-mode derivatives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap
from torch.nn.attention.bias import causal_lower_right

import mps_sdpa
from mps_sdpa import attention, sdpa_opt


def _inputs(**options: Any) -> list[Tensor]:
    q = torch.randn(2, 4, 9, 8, **options)
    return [q, torch.randn(2, 2, 13, 8, **options), torch.randn(2, 2, 13, 6, **options)]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("options", [(None, 0, -1, -1, 0.0), (0.3, 1, 4, 0, 2.0)])
def test_operator_passes_torchs_checks(requires_grad: bool, options: tuple[Any, ...]) -> None:
    inputs = _inputs(requires_grad=requires_grad)
    mask = torch.randn(9, 13, requires_grad=requires_grad)
    sinks = torch.randn(4, requires_grad=requires_grad)
    seed = torch.tensor([3, 4])
    for extra in ((None, None, None), (mask, sinks, seed)):
        dropout = 0.2 if extra[2] is not None else 0.0
        torch.library.opcheck(
            torch.ops.mps_sdpa.attention.default, (*inputs, *extra, *options, dropout, "auto")
        )


def _run(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa_opt(q, k, v, is_causal=True) * 2


def _rich(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out, lse = attention(
        q, k, v, causal="lower_right", window=(5, -1), softcap=3.0, return_lse=True, layout="bhld"
    )
    return out * lse.unsqueeze(-1).sigmoid()


@pytest.mark.parametrize("function", [_causal, _rich])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_breaks(function: Callable[..., Tensor], backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    inputs = _inputs()
    torch.testing.assert_close(_run(compiled, inputs), _run(function, inputs))
    assert mps_sdpa.get_fallback_stats() == {}


def test_inductor() -> None:
    torch._dynamo.reset()
    inputs = _inputs()
    compiled = torch.compile(_causal, fullgraph=True)
    torch.testing.assert_close(_run(compiled, inputs), _run(_causal, inputs))


def test_one_compilation_for_every_length() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_causal, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for length in (9, 14, 33, 70):
        inputs = [torch.randn(2, 4, length, 8) for _ in range(3)]
        torch.testing.assert_close(_run(compiled, inputs), _run(_causal, inputs))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1


def test_one_compilation_for_every_shape() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def masked(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        return sdpa_opt(q, k, k, mask, dropout_p=0.1)

    compiled = torch.compile(masked, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for batch, q_len, kv_len in ((3, 9, 13), (5, 14, 20), (6, 31, 7)):
        q = torch.randn(batch, 4, q_len, 8, requires_grad=True)
        mask = torch.rand(batch, 1, 1, kv_len) < 0.8
        compiled(q, torch.randn(batch, 2, kv_len, 8), mask).sum().backward()
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1


def test_compiled_packed_sequences() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def packed(q: Tensor, k: Tensor, starts: Tensor) -> Tensor:
        out = mps_sdpa.varlen_attention(q, k, k, starts, starts, 9, 9, causal=True)
        assert isinstance(out, Tensor)
        return out * 2

    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for lengths in ([3, 9, 2], [9, 9, 8], [1, 2, 3]):
        starts = torch.tensor([0, *lengths]).cumsum(0)
        q = torch.randn(sum(lengths), 4, 8, requires_grad=True)
        k = torch.randn(sum(lengths), 2, 8, requires_grad=True)
        found, expected = (
            torch.autograd.grad(function(q, k, starts).square().sum(), (q, k))
            for function in (compiled, packed)
        )
        torch.testing.assert_close(found, expected)
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1


def test_packed_operator_passes_torchs_checks() -> None:
    starts = torch.tensor([0, 3, 5])
    q, k, v = (torch.randn(5, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    sinks = torch.randn(4, requires_grad=True)
    options = (3, 3, None, 1, -1, -1, 0.0, 0.0, "auto")
    torch.library.opcheck(
        torch.ops.mps_sdpa.varlen_attention.default,
        (q, k, v, sinks, None, starts, starts, *options),
    )


def test_compiled_causal_bias() -> None:
    torch._dynamo.reset()
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 9, 8)
    bias = causal_lower_right(5, 9)

    def lower_right(q: Tensor, k: Tensor) -> Tensor:
        return sdpa_opt(q, k, k, bias)

    compiled = torch.compile(lower_right, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k), lower_right(q, k))


@pytest.mark.parametrize("function", [F.scaled_dot_product_attention, sdpa_opt])
def test_compilers_cannot_construct_a_causal_bias(function: Callable[..., Tensor]) -> None:
    """The compiler stops at the constructor itself, whoever is called with the bias afterwards."""
    torch._dynamo.reset()
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 9, 8)

    def lower_right(q: Tensor, k: Tensor) -> Tensor:
        return function(q, k, k, causal_lower_right(q.size(-2), k.size(-2)))

    with pytest.raises(Unsupported, match="subclass default constructor"):
        torch.compile(lower_right, fullgraph=True, backend="aot_eager")(q, k)


def test_operators_gradient_is_differentiable() -> None:
    q, k, v = (torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    options = (None, 1, -1, -1, 0.0, 0.0, "auto")

    def operator(*tensors: Tensor) -> Any:
        return torch.ops.mps_sdpa.attention(*tensors, None, None, None, *options)

    torch.autograd.gradgradcheck(operator, (q, k, v))


def test_compiled_dropout_draws_anew_and_repeats() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q: sdpa_opt(q, q, q, dropout_p=0.5), fullgraph=True, backend="aot_eager"
    )
    q = torch.randn(1, 2, 30, 8)
    torch.manual_seed(1)
    first, second = compiled(q), compiled(q)
    torch.manual_seed(1)
    assert torch.equal(compiled(q), first)
    assert not torch.equal(first, second)


def test_compiled_under_autocast() -> None:
    torch._dynamo.reset()
    inputs = [torch.randn(1, 2, 9, 8) for _ in range(3)]
    compiled = torch.compile(_causal, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, expected = compiled(*inputs), _causal(*inputs)
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, expected)


class Layer(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa_opt(q, k, v, is_causal=True)


def test_ahead_of_time() -> None:
    """The package that torch compiles runs the operator in a process that has imported us."""
    inputs = tuple(_inputs())
    program = torch.export.export(Layer(), inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "attention.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        loaded = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(loaded(*inputs), Layer()(*inputs))


def test_export_for_any_length() -> None:
    length = torch.export.Dim("length", min=2, max=64)
    inputs = (torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8))
    shapes = {name: {2: length} for name in ("q", "k", "v")}
    program = torch.export.export(Layer(), inputs, dynamic_shapes=shapes).module()
    longer = [torch.randn(2, 4, 21, 8) for _ in range(3)]
    torch.testing.assert_close(program(*longer), Layer()(*longer))


def test_export() -> None:
    inputs = tuple(_inputs())
    program = torch.export.export(Layer(), inputs)
    assert "mps_sdpa.attention" in str(program.graph)
    torch.testing.assert_close(program.module()(*inputs), Layer()(*inputs))


def _loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda q, k, v: function(q, k, v, is_causal=True).square().sum()


def _stock(*arguments: Any, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(*arguments, **options, enable_gqa=True)


def test_grad_and_vjp() -> None:
    inputs = _inputs()
    argnums = (0, 1, 2)
    mine = grad(_loss(sdpa_opt), argnums)(*inputs)
    torch.testing.assert_close(mine, grad(_loss(_stock), argnums)(*inputs))
    out, pull = vjp(sdpa_opt, *inputs)
    expected, pull_stock = vjp(_stock, *inputs)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(pull(out), pull_stock(out))
    assert mps_sdpa.get_fallback_stats() == {}


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (1, 0, None), (None, 0, 0)])
def test_vmap(in_dims: tuple[int | None, ...]) -> None:
    shapes = [(3, 4, 9, 8), (3, 4, 13, 8), (3, 4, 13, 8)]
    inputs = [
        torch.randn(shape[1:]) if dim is None else torch.randn(shape).movedim(0, dim)
        for shape, dim in zip(shapes, in_dims, strict=True)
    ]
    mine = vmap(lambda q, k, v: sdpa_opt(q, k, v, is_causal=True), in_dims)(*inputs)
    rows = [
        [t if dim is None else t.select(dim, n) for t, dim in zip(inputs, in_dims, strict=True)]
        for n in range(3)
    ]
    expected = torch.stack([F.scaled_dot_product_attention(*r, is_causal=True) for r in rows])
    torch.testing.assert_close(mine, expected)
    assert mps_sdpa.get_call_stats() == {"cpu": 1}


def test_vmap_over_masks_and_nested() -> None:
    q = torch.randn(2, 3, 4, 9, 8)
    masks = torch.rand(2, 3, 9, 9) < 0.7
    mine = vmap(vmap(lambda a, m: sdpa_opt(a, a, a, m)))(q, masks)
    expected = F.scaled_dot_product_attention(q, q, q, masks.unsqueeze(2))
    torch.testing.assert_close(mine, expected)


def test_vmap_over_sinks() -> None:
    q, sinks = torch.randn(3, 1, 4, 9, 8), torch.randn(3, 4)

    def loss(q: Tensor, sinks: Tensor) -> Tensor:
        return attention(q, q, q, sinks=sinks).square().sum()

    found = vmap(grad(loss, (0, 1)))(q, sinks)
    each = [grad(loss, (0, 1))(a, b) for a, b in zip(q, sinks, strict=True)]
    torch.testing.assert_close(found, tuple(torch.stack(t) for t in zip(*each, strict=True)))
    shared = vmap(grad(loss, 1), (0, None))(q, sinks[0])
    torch.testing.assert_close(shared, torch.stack([grad(loss, 1)(a, sinks[0]) for a in q]))


def test_vmap_with_dropout() -> None:
    q = torch.ones(3, 1, 2, 20, 8)

    def dropped(q: Tensor) -> Tensor:
        return sdpa_opt(q, q, q, dropout_p=0.5)

    same = vmap(dropped, randomness="same")(q)
    assert torch.equal(same[0], same[1])
    different = vmap(dropped, randomness="different")(q)
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="random"):
        vmap(dropped)(q)


def test_vmap_of_matrices() -> None:
    q = torch.randn(5, 9, 8)
    expected = F.scaled_dot_product_attention(q, q, q)
    torch.testing.assert_close(vmap(lambda t: sdpa_opt(t, t, t))(q), expected)


def test_gradients_of_each_sample() -> None:
    inputs = [torch.randn(3, 4, 9, 8) for _ in range(3)]
    mine = vmap(grad(_loss(sdpa_opt)))(*inputs)
    expected = torch.stack([grad(_loss(_stock))(*(t[n] for t in inputs)) for n in range(3)])
    torch.testing.assert_close(mine, expected)


def test_forward_mode() -> None:
    inputs = [torch.randn(1, 2, 5, 4, dtype=torch.float64) for _ in range(3)]
    tangents = [torch.randn_like(tensor) for tensor in inputs]
    out, tangent = jvp(sdpa_opt, tuple(inputs), tuple(tangents))
    torch.testing.assert_close(out, sdpa_opt(*inputs))
    step = 1e-6
    ahead = sdpa_opt(*(t + step * d for t, d in zip(inputs, tangents, strict=True)))
    back = sdpa_opt(*(t - step * d for t, d in zip(inputs, tangents, strict=True)))
    torch.testing.assert_close(tangent, (ahead - back) / (2 * step), atol=1e-7, rtol=1e-6)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(inputs, tangents, strict=True)]
        found = forward_ad.unpack_dual(sdpa_opt(*duals)).tangent
    torch.testing.assert_close(found, tangent)


def test_hessian() -> None:
    q = torch.randn(1, 1, 3, 2, dtype=torch.float64)
    k = torch.randn(1, 1, 4, 2, dtype=torch.float64)
    mine = hessian(lambda t: sdpa_opt(t, k, k).square().sum())(q)
    twice = torch.autograd.functional.hessian(lambda t: sdpa_opt(t, k, k).square().sum(), q)
    torch.testing.assert_close(mine, twice)
    nested = grad(lambda t: grad(lambda s: sdpa_opt(s, k, k).square().sum())(t).sum())(q)
    torch.testing.assert_close(nested, mine.sum((0, 1, 2, 3)))


def test_functional_call_of_a_model() -> None:
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    weights = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, parameters, (x, x, x), {"need_weights": False})[0].sum()

    expected = grad(loss)(weights)
    with mps_sdpa.enabled():
        torch.testing.assert_close(grad(loss)(weights), expected)
