# SPDX-License-Identifier: MIT
"""The MPSGraph back ends on torch's tensors, on a fake Mac; test_mpsgraph.py runs this file."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fake_mac  # before all else: it is where the module looks for Apple's frameworks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close as assert_close_in
from fake_mac import torch_on_mac
from torch import Tensor

import mps_sdpa
from mps_sdpa import (
    _core,
    api,
    attention,
    calibration,
    devices,
    engine,
    graphs,
    sdpa_opt,
    threshold_cache,
)
from mps_sdpa.environment import environment
from mps_sdpa.harness import correctness, data, peaks, timing
from mps_sdpa.harness.cases import Case, suite
from mps_sdpa.harness.data import make_inputs
from mps_sdpa.harness.environment import Watch

ZERO_COPY, COPYING = graphs.NAMES
#: Every this many cases; FAKE_MAC_STEP=1 runs all of them, which takes minutes.
_STEP = {ZERO_COPY: 41, COPYING: 83}
if "FAKE_MAC_STEP" in os.environ:
    _STEP = dict.fromkeys(_STEP, int(os.environ["FAKE_MAC_STEP"]))


@pytest.fixture(autouse=True)
def _no_mistakes() -> Iterator[None]:
    yield from fake_mac.no_mistakes()


def conformance() -> list[tuple[str, Case]]:
    cases = [case for case in suite("conformance") if not case.layout.startswith("huge")]
    return [(name, case) for name in graphs.NAMES for case in cases[:: _STEP[name]]]


def reference(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    wide = {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in options.items()}  # fmt: skip
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), **wide)  # type: ignore[arg-type]


def assert_close(actual: Tensor, expected: Tensor, factor: float = 1) -> None:
    assert_close_in(actual, expected, actual.dtype, factor)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


@pytest.mark.parametrize(("name", "case"), conformance(), ids=lambda x: getattr(x, "name", x))
def test_conformance(name: str, case: Case) -> None:
    with torch_on_mac():
        outcome = correctness.check(case, name)
    if outcome.refused is not None:
        assert "float64" in outcome.refused
        return
    assert outcome.passed, outcome.error
    assert mps_sdpa.get_fallback_stats() == {}


@pytest.mark.parametrize("name", graphs.NAMES)
def test_storage_offsets_are_honoured(name: str) -> None:
    q, k, v = torch.randn(3, 2, 3, 9, 16).unbind(0)
    assert v.storage_offset() > 0 and v.is_contiguous()
    with torch_on_mac():
        out = sdpa_opt(q, k, v, backend=name)
    assert_close(out, reference(q, k, v))
    assert mps_sdpa.get_call_stats() == {name: 1}


@pytest.mark.parametrize("name", graphs.NAMES)
def test_views_slices_and_transposes(name: str) -> None:
    whole = torch.randn(2, 12, 3, 40)
    q = whole[:, 1:10, :, 3:19].transpose(1, 2)
    k = whole[:, ::2, :, 8:24].transpose(1, 2)
    v = torch.randn(1, 3, 6, 16).expand(2, 3, 6, 16)
    mask = torch.randn(2, 1, 1, 6).expand(2, 3, 9, 6)
    with torch_on_mac():
        out = sdpa_opt(q, k, v, mask, backend=name)
    assert_close(out, reference(q, k, v, attn_mask=mask))


@pytest.mark.parametrize("name", graphs.NAMES)
def test_gradients_and_the_mask_s_too(name: str) -> None:
    base = torch.randn(3, 1, 2, 9, 16)
    mask = torch.randn(1, 2, 9, 9, requires_grad=True)
    q, k, v = (x.requires_grad_() for x in base.unbind(0))
    grad = torch.randn(2, 1, 2, 9, 16)[1]  # with a storage offset
    with torch_on_mac():
        out = sdpa_opt(q, k, v, mask, backend=name)
        found = torch.autograd.grad(out, (q, k, v, mask), grad)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v, mask)]
    expected = torch.autograd.grad(
        F.scaled_dot_product_attention(*wide[:3], attn_mask=wide[3]), wide, grad.double()
    )
    for got, want in zip(found, expected, strict=True):
        assert_close(got, want, factor=2)
    assert mps_sdpa.get_fallback_stats() == {}


def transposed(*shape: int) -> Tensor:
    return torch.randn(shape).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("name", graphs.NAMES)
def test_gradients_of_views(name: str) -> None:
    """Heads inside, groups, expanded values and masks, a gradient with gaps between columns."""
    q, k, mask = transposed(2, 9, 4, 16), transposed(2, 7, 2, 16), torch.randn(2, 1, 1, 7)
    base = torch.randn(1, 1, 7, 16).requires_grad_()
    grad = torch.randn(2, 4, 9, 32)[..., ::2]
    expanded = mask.requires_grad_().expand(2, 4, 9, 7)
    with torch_on_mac():
        out = sdpa_opt(q, k, base.expand(2, 2, 7, 16), expanded, backend=name)
        found = torch.autograd.grad(out, (q, k, base, mask), grad)
    wide = [x.detach().double().requires_grad_() for x in (q, k, base, mask)]
    expected = torch.autograd.grad(
        F.scaled_dot_product_attention(
            wide[0],
            wide[1].repeat_interleave(2, 1),
            wide[2].expand(2, 4, 7, 16),
            attn_mask=wide[3].expand(2, 4, 9, 7),
        ),
        wide,
        grad.double(),
    )
    for got, want in zip(found, expected, strict=True):
        assert_close(got, want, factor=2)
    assert mps_sdpa.get_fallback_stats() == {}
    assert mps_sdpa.get_call_stats() == {name: 1}


def test_dropout_is_that_of_every_back_end() -> None:
    q, k, v = (rand(1, 2, 9, 16) for _ in range(3))
    expected = attention(q, k, v, dropout=0.3, seed=5)
    for name in graphs.NAMES:
        with torch_on_mac():
            found = attention(q, k, v, dropout=0.3, seed=5, backend=name)
            assert_close(found, expected.double())


def check_that_the_copying_one_serves(reason: str) -> None:
    q = rand(1, 2, 9, 16)
    status = mps_sdpa.backend_status(device="cpu")["unavailable"]
    out = sdpa_opt(q, q, q)
    assert status[ZERO_COPY] == reason
    assert COPYING not in status
    assert_close(out, reference(q, q, q))
    assert mps_sdpa.get_call_stats() == {COPYING: 1}


def test_without_torch_s_stream_the_copying_one_serves() -> None:
    with torch_on_mac(missing_stream="torch exports nothing."):
        check_that_the_copying_one_serves("torch exports nothing.")


def test_without_torch_s_buffers_the_copying_one_serves() -> None:
    with torch_on_mac(has_buffers=False):
        check_that_the_copying_one_serves("torch's storage does not point to a Metal buffer.")


# ---- When something goes wrong ----

Failing = Callable[[str], contextlib.AbstractContextManager[Any]]


def torch_raises(error: Exception) -> Failing:
    """torch has no memory for what the back end copies; the other one is not hit."""
    where = {ZERO_COPY: "_dense_inputs", COPYING: "_on_host"}
    return lambda name: mock.patch.object(graphs, where[name], mock.Mock(side_effect=error))


@contextlib.contextmanager
def no_graph_compiles(name: str) -> Iterator[None]:
    fake_mac.fail_graphs(True)
    yield
    fake_mac.fail_graphs(False)


OUT_OF_MEMORY = "MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB)"
INVALID_SIZE = "Invalid buffer size: 16.00 GiB"
NOT_COMPILED = "MPSGraph could not compile the graph."
FAILURES: dict[str, Failing] = {
    OUT_OF_MEMORY: torch_raises(torch.OutOfMemoryError(OUT_OF_MEMORY)),
    INVALID_SIZE: torch_raises(RuntimeError(INVALID_SIZE)),
    NOT_COMPILED: no_graph_compiles,
}
#: A length for each test, so that its graphs are not compiled yet.
LENGTHS = iter(range(100, 200))


@pytest.mark.parametrize("name", graphs.NAMES)
@pytest.mark.parametrize("training", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("reason", FAILURES)
def test_a_failure_leaves_the_call_to_the_next(reason: str, training: bool, name: str) -> None:
    q = rand(1, 2, next(LENGTHS), 16).requires_grad_(training)
    wide = q.detach().double().requires_grad_(training)
    expected = reference(wide, wide, wide)
    with torch_on_mac(), mock.patch.object(graphs, "drop_caches", wraps=graphs.drop_caches) as drop:
        with contextlib.nullcontext() if training else FAILURES[reason](name):
            out = sdpa_opt(q, q, q, backend=name)
        assert_close(out.detach(), expected.detach())
        if training:
            compiled = fake_mac.compiled_graphs()
            with FAILURES[reason](name):
                (found,) = torch.autograd.grad(out.sum(), q)
            assert_close(found, torch.autograd.grad(expected.sum(), wide)[0], factor=2)
            assert fake_mac.compiled_graphs() > compiled  # the next one's, or one that failed
    both_fail = reason == NOT_COMPILED
    assert drop.call_count == (2 if both_fail else 1)
    counted = mps_sdpa.get_fallback_stats()
    assert list(counted.values()) == [1]
    assert f"{name}: The launch failed: {reason}" in next(iter(counted))
    other = COPYING if name == ZERO_COPY else ZERO_COPY
    expected_calls = {name: 1} if training else {"stock": 1} if both_fail else {other: 1}
    assert mps_sdpa.get_call_stats() == expected_calls


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", graphs.NAMES)
def test_the_cpu_s_tensors_for_the_gpu_are_computed_once(name: str, training: bool) -> None:
    q = rand(1, 2, 9, 16).requires_grad_(training)
    with (
        torch_on_mac(),
        mock.patch.object(devices, "kind", lambda tensor: "cpu"),
        mock.patch.object(api, "_enter", _core.enter),
    ):
        out = sdpa_opt(q, q, q, backend=name)
    assert_close(out, reference(q, q, q))
    assert mps_sdpa.get_call_stats() == {"cpu": 1}
    assert sum(mps_sdpa.get_fallback_stats().values()) == 1


@pytest.mark.parametrize("training", [False, True])
def test_a_gpu_without_memory_leaves_the_call_to_torch(training: bool) -> None:
    q = rand(1, 2, 9, 16).requires_grad_(training)
    with torch_on_mac(missing_stream="torch exports nothing."):
        fake_mac.limit_memory(0)
        out = sdpa_opt(q, q, q, backend=COPYING)
    assert_close(out, reference(q, q, q))
    assert any("no memory" in reason for reason in mps_sdpa.get_fallback_stats())


def test_equal_calls_compile_once() -> None:
    q = rand(1, 2, 13, 16)
    with torch_on_mac():
        before = fake_mac.compiled_graphs()
        for _ in range(3):
            sdpa_opt(q, q, q, backend=ZERO_COPY)
    assert fake_mac.compiled_graphs() == before + 1


def test_the_buffer_s_identity_is_tried() -> None:
    tensor = torch.arange(64, dtype=torch.float32)
    content = tensor[3:].numpy().tobytes()
    reason = _core.graph_buffer_reason
    assert reason(fake_mac.buffer_over(tensor), 12, content) is None
    assert reason(fake_mac.buffer_over(tensor), 16, content) == (
        "torch's Metal buffer is shorter than its tensor."
    )
    assert reason(fake_mac.buffer_over(tensor), 0, content) == (
        "torch's Metal buffer does not hold its tensor's elements."
    )
    assert reason(tensor.data_ptr(), 12, content) == (
        "torch's storage does not point to a Metal buffer."
    )


# ---- Calibration ----


def test_calibration_times_every_back_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"stock": 1.0, ZERO_COPY: 2.0, COPYING: 0.5}

    def rounds(runs: list[Callable[[], object]], **_: object) -> np.ndarray[Any, Any]:
        for run in runs:
            run()
        return np.tile([*seconds.values()], (5, 1))

    monkeypatch.setenv("MPS_SDPA_CACHE_DIR", str(tmp_path))
    environment.cache_clear()
    monkeypatch.setattr(Watch, "_others", lambda _: 0.0)
    monkeypatch.setattr(timing, "rounds", rounds)
    monkeypatch.setattr(peaks, "synchronizer", lambda _: fake_mac.synchronize)
    monkeypatch.setattr(data, "make_inputs", lambda case, device: make_inputs(case))
    monkeypatch.setattr(calibration, "available_backends", lambda: [*graphs.NAMES, "cpu", "stock"])
    monkeypatch.setitem(calibration._LENGTHS, "mps", (16,))
    monkeypatch.setattr(calibration, "MEASURED", ("float32",))
    q = torch.randn(1, 4, 16, 64)
    with torch_on_mac():
        found = calibration.calibrate("mps")
        sdpa_opt(q, q, q)
    assert list(found["forward"]["float32"][64].items()) == [(COPYING, 0.0), (ZERO_COPY, math.inf)]
    assert found == threshold_cache.read("mps")
    assert len(threshold_cache.read_points("mps")) == 2 * 2 * 2  # back ends, dims, passes
    assert mps_sdpa.get_call_stats() == {COPYING: 1}
    assert mps_sdpa.get_fallback_stats() == {}
    engine.forget_options()
