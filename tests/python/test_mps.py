# SPDX-License-Identifier: MIT
"""The launcher of Metal kernels on torch's tensors, run against a stand-in for torch.mps."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, leaves
from torch import Tensor, nn
from torch_mps import Gpu, apple_gpu, pack

import mps_sdpa
from mps_sdpa import _core, attention, mps, sdpa_opt
from mps_sdpa.harness import correctness
from mps_sdpa.harness.cases import Case, suite

#: Every this many cases of the conformance suite; the C++ test runs all of them on the same plans.
_STEP = 37


def conformance_cases() -> list[Case]:
    """A spread of cases whose tensors are small enough to be copied into the simulator."""
    cases = [case for case in suite("conformance") if not case.layout.startswith("huge")]
    return cases[::_STEP]


@pytest.mark.parametrize("case", conformance_cases(), ids=lambda case: case.name)
def test_conformance(case: Case) -> None:
    with apple_gpu() as gpu:
        outcome = correctness.check(case, "metal")
    if outcome.refused is not None:
        assert case.dtype == "float64" or "float64" in outcome.refused
        return
    assert outcome.passed, outcome.error
    assert gpu.launches or 0 in (case.batch, case.q_len, case.kv_len, case.qk_dim, case.v_dim)
    assert mps_sdpa.get_fallback_stats() == {}


def rand(*shape: int) -> Tensor:
    return torch.randn(shape)


FEATURES: dict[str, tuple[list[Tensor], dict[str, Any]]] = {
    "plain": ([rand(2, 3, 19, 24), rand(2, 3, 40, 24), rand(2, 3, 40, 24)], {}),
    "causal": ([rand(1, 2, 33, 16), rand(1, 2, 33, 16), rand(1, 2, 33, 16)], {"causal": True}),
    "lower right": (
        [rand(1, 2, 5, 16), rand(1, 2, 33, 16), rand(1, 2, 33, 16)],
        {"causal": "lower_right"},
    ),
    "window": ([rand(1, 2, 33, 16), rand(1, 2, 33, 16), rand(1, 2, 33, 16)], {"window": (5, 2)}),
    "softcap": ([rand(1, 2, 9, 16), rand(1, 2, 17, 16), rand(1, 2, 17, 16)], {"softcap": 2.0}),
    "grouped heads": ([rand(2, 6, 9, 16), rand(2, 2, 17, 16), rand(2, 2, 17, 16)], {}),
    "narrow value": ([rand(1, 2, 9, 40), rand(1, 2, 17, 40), rand(1, 2, 17, 8)], {}),
    "odd dims": ([rand(1, 2, 9, 7), rand(1, 2, 17, 7), rand(1, 2, 17, 13)], {}),
    "dim 512": ([rand(1, 1, 9, 512), rand(1, 1, 17, 512), rand(1, 1, 17, 512)], {}),
    "dropout": (
        [rand(1, 2, 19, 16), rand(1, 2, 33, 16), rand(1, 2, 33, 16)],
        {"dropout": 0.3, "seed": 5},
    ),
    "decode": ([rand(2, 4, 1, 32), rand(2, 2, 300, 32), rand(2, 2, 300, 32)], {}),
    "scale": ([rand(1, 2, 9, 16), rand(1, 2, 9, 16), rand(1, 2, 9, 16)], {"scale": -0.3}),
    "no heads": ([rand(9, 16), rand(17, 16), rand(17, 16)], {}),
    "5d": ([rand(2, 2, 3, 9, 16), rand(2, 2, 3, 17, 16), rand(2, 2, 3, 17, 16)], {}),
    "5d in pieces": (
        [rand(3, 2, 2, 9, 16).transpose(0, 1), rand(2, 3, 2, 17, 16), rand(2, 3, 2, 17, 16)],
        {"dropout": 0.3, "seed": 5},
    ),
    "batch of keys": ([rand(1, 3, 5, 8), rand(4, 3, 7, 8), rand(4, 3, 7, 8)], {}),
    "columns apart": (
        [rand(1, 2, 9, 32)[..., ::2], rand(1, 2, 17, 32)[..., 1::2], rand(1, 2, 17, 16)],
        {},
    ),
    "heads inside": (
        [rand(2, 9, 3, 16).transpose(1, 2), *[rand(2, 17, 3, 16).transpose(1, 2)] * 2],
        {},
    ),
    "slice of one tensor": (
        [each.transpose(1, 2) for each in rand(2, 19, 9, 16)[:, 3:].split(3, 2)],
        {},
    ),
    "blhd": ([rand(2, 9, 3, 16), rand(2, 17, 3, 16), rand(2, 17, 3, 16)], {"layout": "blhd"}),
}

MASKS: dict[str, Tensor] = {
    "bool": torch.rand(9, 33) > 0.3,
    "padding": torch.rand(2, 1, 1, 33) > 0.3,
    "empty rows": torch.rand(2, 4, 9, 33) > torch.tensor([1.0, 0.3, 0.0] * 3).view(9, 1),
    "float32": rand(2, 1, 9, 33),
    "float16": rand(4, 9, 33).half(),
    "bfloat16": rand(1, 4, 1, 33).bfloat16(),
    "expanded": rand(1, 1, 1, 33).expand(2, 4, 9, 33),
    "every second": rand(2, 4, 9, 66)[..., ::2],
}


def run(
    tensors: list[Tensor], options: dict[str, Any], grad: Tensor | None, grad_lse: Tensor | None
) -> list[Tensor]:
    """The output, its log-sum-exp, and the gradients of every float input."""
    inputs = [t.requires_grad_() if t.is_floating_point() else t for t in tensors]
    named = dict(zip(("mask", "sinks"), inputs[3:], strict=False))
    named = {name: tensor for name, tensor in named.items() if tensor.numel()}
    out, lse = attention(*inputs[:3], **named, **options, return_lse=True)
    asked = [t for t in [*inputs[:3], *named.values()] if t.requires_grad]
    grads = [torch.ones_like(out) if grad is None else grad, grad_lse]
    outputs = [out, lse] if grad_lse is not None else [out]
    return [out, lse, *torch.autograd.grad(outputs, asked, grads[: len(outputs)])]


def compare(tensors: list[Tensor], options: dict[str, Any], dtype: torch.dtype) -> list[str]:
    """Both back ends on the same call; the launches of the one."""
    half = [t if t.dtype == torch.bool else t.to(dtype) for t in tensors[:3]] + tensors[3:]
    expected_of = [t if t.dtype == torch.bool else t.detach().clone() for t in half]
    grad_lse = rand(*tensors[0].shape[:-1]) if options.get("window") or tensors[3:] else None
    expected = run(expected_of, options, None, grad_lse)
    mps_sdpa.reset_call_stats()
    with apple_gpu() as gpu:
        actual = run([t.detach() for t in half], options, None, grad_lse)
    assert mps_sdpa.get_call_stats() == {"metal": 1}
    assert mps_sdpa.get_fallback_stats() == {}
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == wanted.dtype
        assert got.stride() == wanted.stride()
        allowed = dtype if got.dtype == torch.float32 else got.dtype
        assert_close(got, wanted, allowed, factor=4)  # twice the gradient tolerance: two errors
    return gpu.launches


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FEATURES)
def test_features(name: str, dtype: torch.dtype) -> None:
    tensors, options = FEATURES[name]
    launches = compare(tensors, options, dtype)
    assert any(launch.startswith("grad_key_value") for launch in launches)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_masks_and_their_gradients(name: str, causal: bool) -> None:
    tensors = [rand(2, 4, 9, 16), rand(2, 2, 33, 16), rand(2, 2, 33, 16), MASKS[name]]
    compare(tensors, {"causal": causal}, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sinks_and_their_gradient(dtype: torch.dtype) -> None:
    tensors = [rand(2, 4, 9, 16), rand(2, 2, 33, 16), rand(2, 2, 33, 16), torch.zeros(0), rand(4)]
    compare(tensors, {}, dtype)


def test_output_lies_as_on_the_cpu() -> None:
    q = rand(2, 5, 3, 16).transpose(1, 2)
    with apple_gpu():
        assert sdpa_opt(q, q, q).stride() == F.scaled_dot_product_attention(q, q, q).stride()


def test_dropout_mask_is_the_cpus_bit_for_bit() -> None:
    q, k = rand(1, 2, 19, 16), rand(1, 2, 40, 16)
    value = torch.eye(40).expand(1, 2, 40, 40).contiguous()
    expected = attention(q, k, value, dropout=0.4, seed=7)
    with apple_gpu():
        assert torch.equal(attention(q, k, value, dropout=0.4, seed=7) == 0, expected == 0)


def test_nothing_to_compute_launches_nothing() -> None:
    with apple_gpu() as gpu:
        for q_len, kv_len in ((0, 5), (3, 0)):
            out, lse = attention(
                rand(1, 2, q_len, 8), rand(1, 2, kv_len, 8), rand(1, 2, kv_len, 8), return_lse=True
            )
            assert out.shape == (1, 2, q_len, 8)
            assert not out.any()
            assert (lse == -torch.inf).all()
    assert gpu.launches == []


# ---- What torch is given ----


def test_packing_is_torchs() -> None:
    assert pack(-2) == struct.pack("<q", -2)
    assert pack(0.5) == struct.pack("<f", 0.5)
    assert pack([1, 2**40]) == struct.pack("<qq", 1, 2**40)
    assert pack((0.5, 2.0)) == struct.pack("<ff", 0.5, 2.0)
    assert pack([1, 2], "int32") == struct.pack("<ii", 1, 2)
    for wrong in (True, b"x", [], [1, 0.5], [None]):
        with pytest.raises(RuntimeError):
            pack(wrong)


def test_parameter_blocks_are_packed_words() -> None:
    q = rand(1, 2, 9, 16)
    inputs = (q, q, q, None, None)
    launcher = _core.MetalLauncher(_core.MetalDevice("m4", 9, 10))
    pieces = _core.metal_forward(inputs, _core.Options(scale=0.5), False, launcher)[4]
    launches, _, params, scalars, offsets = pieces[0]
    assert params[:7] == [1, 2, 2, 9, 9, 16, 16]
    assert scalars == [0.5, 0.0, 1.0]
    assert offsets == {}
    assert len(pack(params)) <= 4096
    _, threads, group, roles = launches[0]
    assert all(total % each == 0 for total, each in zip(threads, group, strict=True))
    assert len(roles) <= 31


def test_a_kernel_is_compiled_once_and_the_least_used_are_dropped() -> None:
    q = rand(1, 2, 9, 16)
    with apple_gpu() as gpu:
        for _ in range(3):
            sdpa_opt(q, q, q)
        assert len(gpu.compiled) == 1
        assert len(gpu.launches) == 3
        assert mps._compiled.cache_info().maxsize == 256


def test_a_source_that_is_not_ours_does_not_compile() -> None:
    with apple_gpu(), pytest.raises(SyntaxError, match="instantiates no kernel"):
        torch.mps.compile_shader("kernel void f() {}")


EMPTY: dict[str, list[tuple[int, ...]]] = {
    "no queries": [(1, 2, 0, 16), (1, 2, 7, 16), (1, 2, 7, 16)],
    "no keys": [(1, 2, 9, 16), (1, 2, 0, 16), (1, 2, 0, 16)],
    "no batch": [(0, 2, 9, 16), (0, 2, 7, 16), (0, 2, 7, 16)],
    "no dim": [(1, 2, 9, 0), (1, 2, 7, 0), (1, 2, 7, 16)],
    "no value dim": [(1, 2, 9, 16), (1, 2, 7, 16), (1, 2, 7, 0)],
    "other lengths": [(1, 2, 0, 16), (1, 2, 7, 16), (1, 2, 8, 16)],
    "other dims": [(1, 2, 0, 16), (1, 2, 7, 8), (1, 2, 7, 8)],
    "other heads": [(1, 4, 0, 16), (1, 3, 7, 16), (1, 3, 7, 16)],
    "other batch": [(2, 2, 0, 16), (3, 2, 7, 16), (3, 2, 7, 16)],
    "no keys, but values": [(1, 2, 9, 16), (1, 2, 0, 16), (1, 2, 1, 16)],
    "mask of another shape": [(1, 2, 0, 16), (1, 2, 7, 16), (1, 2, 7, 16), (3, 5)],
}


def ends(tensors: list[Tensor]) -> Tensor | str:
    """A call's result, or the sentence that refuses it."""
    try:
        out: Tensor = sdpa_opt(*tensors)
    except RuntimeError as error:
        return str(error)
    return out


@pytest.mark.parametrize("name", EMPTY)
def test_extents_of_zero_are_validated_as_on_the_cpu(name: str) -> None:
    tensors = [rand(*shape) for shape in EMPTY[name]]
    expected = ends(tensors)
    with apple_gpu() as gpu:
        found = ends(tensors)
    if isinstance(found, str):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected)
    assert isinstance(expected, str) == name.startswith(("other", "no keys,", "mask"))
    assert gpu.launches == []


# ---- When something is in the way ----


def call_and_count(gpu: Gpu, **options: Any) -> tuple[dict[str, int], dict[str, int]]:
    """A training step on `gpu` that is right in the end; calls and fallbacks."""
    tensors = [rand(1, 2, 33, 16) for _ in range(3)]
    expected = run([t.clone() for t in tensors], {"causal": True}, None, None)
    mps_sdpa.reset_call_stats()
    mps_sdpa.reset_fallback_stats()
    with apple_gpu(gpu):
        actual = run(tensors, {"causal": True, **options}, None, None)
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, torch.float32, factor=4)
    return mps_sdpa.get_call_stats(), mps_sdpa.get_fallback_stats()


def test_fewer_threads_than_planned() -> None:
    gpu = Gpu()
    gpu.max_threads = 64
    assert call_and_count(gpu) == ({"metal": 1}, {})
    assert gpu.launches[0].startswith("forward_float_q2_v2_c1_t4_g2_")


def test_a_kernel_that_does_not_compile_leaves_the_call_to_the_next() -> None:
    gpu = Gpu()
    gpu.compile_error = "error: unknown type name 'bfloat'"
    calls, fallbacks = call_and_count(gpu)
    assert calls == {"stock": 1}
    assert list(fallbacks.values()) == [1]
    assert "metal: The launch failed: error: unknown type name 'bfloat'" in next(iter(fallbacks))


def test_a_kernel_that_does_not_compile_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    gpu.compile_error = "error: no"
    compile_shader, tried = gpu.compile_shader, []
    monkeypatch.setattr(gpu, "compile_shader", lambda text: (tried.append(1), compile_shader(text)))
    q = rand(1, 2, 9, 16)
    with apple_gpu(gpu):
        for _ in range(3):
            sdpa_opt(q, q, q)
    assert len(tried) == 1
    assert mps_sdpa.get_call_stats() == {"stock": 3}


def test_failure_of_the_gradient_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    compile_shader = gpu.compile_shader

    def refuse_gradients(source: str) -> Any:
        gpu.compile_error = "error: no" if '("grad_query' in source else None
        return compile_shader(source)

    monkeypatch.setattr(gpu, "compile_shader", refuse_gradients)
    calls, fallbacks = call_and_count(gpu)
    assert calls == {"metal": 1}
    assert any("metal: The launch failed: error: no" in reason for reason in fallbacks)


def test_out_of_memory_leaves_the_call_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("MPS backend out of memory (MPS allocated: 9 GB)")

    monkeypatch.setattr(mps, "_launch", fail)
    calls, fallbacks = call_and_count(Gpu())
    assert calls == {"stock": 1}
    assert any("MPS backend out of memory" in reason for reason in fallbacks)


def test_strict_says_what_was_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_SDPA_STRICT", "1")
    gpu = Gpu()
    gpu.compile_error = "error: no"
    q = rand(1, 2, 9, 16)
    with apple_gpu(gpu), pytest.raises(RuntimeError, match=r"back end 'metal' .*error: no"):
        sdpa_opt(q, q, q, backend="metal")


def test_order_and_reasons() -> None:
    q = rand(1, 2, 9, 16)
    with apple_gpu():
        found = mps_sdpa.explain(q, q, q, quiet=True)
        assert found["backend"] == "metal"
        assert found["plan"].startswith("forward_float_q2_v2")
        double = mps_sdpa.explain(*[q.double()] * 3, quiet=True)
        status = mps_sdpa.backend_status(device="mps")
    assert double["backend"] == "stock"
    assert double["rejected"]["metal"].startswith("Metal has no float64")
    assert status["picked"] == "metal"
    assert list(double["rejected"]) == [
        n for n in mps_sdpa.backends.NAMES if n in double["rejected"]
    ]


def test_the_naive_kernel_by_name() -> None:
    q = rand(1, 2, 9, 16)
    with apple_gpu() as gpu:
        out = sdpa_opt(q, q, q, backend="metal_proto")
    assert_close(out, F.scaled_dot_product_attention(q, q, q), torch.float32)
    assert gpu.launches[0].startswith("proto_")
    assert mps_sdpa.get_call_stats() == {"metal_proto": 1}


def test_without_compile_shader(monkeypatch: pytest.MonkeyPatch) -> None:
    with apple_gpu():
        monkeypatch.delattr(torch.mps, "compile_shader")
        assert "has no torch.mps.compile_shader" in (mps.reason_against() or "")
        with pytest.raises(RuntimeError, match="back end 'metal' is not available: torch"):
            sdpa_opt(*[rand(1, 2, 9, 16)] * 3, backend="metal")


def test_what_a_mac_sends_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import mac

    monkeypatch.setattr(mac, "time", lambda *_, **__: {"rows": []})
    with apple_gpu():
        found = mac.collect("cpu", ["metal"], checked=12, timed=1)
    checked = found["back_ends"]["metal"]["correctness"]
    assert checked["n"] > 6
    assert checked["n_pass"] == checked["n"], checked["failed"]
    assert found["self_test"]["status"] == "pass"
    assert found["self_test"]["benchmark"]["auto_backend"] == "metal"
    monkeypatch.setattr(sys, "argv", ["mac.py"])
    assert mac.main() == 2


def test_here_there_is_no_gpu() -> None:
    reason = mps.reason_against()
    assert reason is not None
    assert "metal" not in mps_sdpa.available_backends()


# ---- A model ----


class Block(nn.Module):
    """One layer of a causal transformer with grouped heads."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, width // heads
        self.project = nn.Linear(width, (heads + 2 * kv_heads) * self.dim)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        packed = self.project(self.norm(x)).view(batch, length, -1, self.dim).transpose(1, 2)
        q, k, v = packed.split((self.heads, self.kv_heads, self.kv_heads), 1)
        seen = sdpa_opt(q, k, v, is_causal=True)
        return x + self.out(seen.transpose(1, 2).reshape(batch, length, width))


def train(steps: int) -> tuple[list[float], list[Tensor]]:
    torch.manual_seed(3)
    width, length, tokens = 32, 24, 50
    model = nn.Sequential(
        nn.Embedding(tokens, width),
        Block(width, 4, 2),
        Block(width, 4, 2),
        nn.Linear(width, tokens),
    )
    # Not Adam: a bias of the keys has no gradient but rounding errors, which Adam would enlarge.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    losses = []
    for _ in range(steps):
        text = torch.randint(tokens, (2, length + 1))
        logits = model(text[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach() for p in model.parameters()]


def test_training_equals_the_cpus() -> None:
    steps = 5
    expected_losses, expected = train(steps)
    mps_sdpa.reset_call_stats()
    with apple_gpu():
        losses, parameters = train(steps)
    assert mps_sdpa.get_call_stats() == {"metal": 2 * steps}
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for got, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-3)


def test_cost_of_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged: what our Python and C++ cost before torch's own dispatch."""
    gpu = Gpu()
    gpu.computes = False
    q, k, v = leaves([rand(1, 8, 64, 64) for _ in range(3)])
    with apple_gpu(gpu):
        sdpa_opt(q, k, v).sum().backward()
        count = 200
        with torch.no_grad():
            start = time.perf_counter()
            for _ in range(count):
                sdpa_opt(q, k, v)
            forward = (time.perf_counter() - start) / count
    with capsys.disabled():
        print(f"\na call of mps.py on the stand-in, nothing computed: {forward * 1e6:.1f} us")
    assert len(gpu.launches) >= count
