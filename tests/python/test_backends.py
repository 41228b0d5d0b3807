# SPDX-License-Identifier: MIT
"""Names, availability, the default, explanations, counters and fallbacks."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

import mps_sdpa
from mps_sdpa import backends, engine, sdpa_opt
from mps_sdpa.environment import VARIABLES, environment

Q = torch.randn(1, 2, 7, 8)
APPLE = ["metal", "mpsgraph_zc", "mpsgraph", "metal_proto"]


def test_names_in_order() -> None:
    assert (*APPLE, "cpu", "stock") == backends.NAMES
    assert mps_sdpa.available_backends()[-2:] == ["cpu", "stock"]


@pytest.mark.parametrize("name", APPLE)
def test_apple_back_ends_say_why_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backends.reason_against(name) is None:  # a Mac has it
        monkeypatch.setattr(backends, "reason_against", lambda _: "It was taken away.")
    reason = mps_sdpa.backend_status()["unavailable"][name]
    assert reason.endswith(".")
    with pytest.raises(RuntimeError, match=f"back end '{name}' is not available: "):
        sdpa_opt(Q, Q, Q, backend=name)
    with pytest.raises(RuntimeError, match=f"back end '{name}' is not available: "):
        mps_sdpa.set_default_backend(name)


def test_unknown_names_list_the_known() -> None:
    for call in (
        lambda: sdpa_opt(Q, Q, Q, backend="fast"),
        lambda: mps_sdpa.set_default_backend("fast"),
        lambda: mps_sdpa.backend_status("fast"),
    ):
        with pytest.raises(KeyError, match="unknown back end 'fast'; known are auto, metal,"):
            call()


def test_status_and_banner(capsys: pytest.CaptureFixture[str]) -> None:
    status = mps_sdpa.backend_status("auto", "cpu")
    assert status["requested_backend"] == "auto"
    assert status["picked"] == status["active"] == "cpu"
    assert status["mps_sdpa_version"] == mps_sdpa.__version__
    assert status["torch_version"] == torch.__version__
    mps_sdpa.print_backend_banner("auto", "cpu", tag="here")
    mps_sdpa.print_backend_banner("auto", "cpu", tag="here")
    text = capsys.readouterr().out
    assert text.count("picked: cpu") == 1
    assert "here" in text
    mps_sdpa.print_backend_banner("auto", "cpu", tag="here", once=False)
    assert "picked: cpu" in capsys.readouterr().out


def test_default_back_end_changes_what_runs() -> None:
    sdpa_opt(Q, Q, Q)
    mps_sdpa.set_default_backend("stock")
    sdpa_opt(Q, Q, Q)
    assert mps_sdpa.backend_status(device="cpu")["picked"] == "stock"
    mps_sdpa.set_default_backend("auto")
    sdpa_opt(Q, Q, Q)
    sdpa_opt(Q, Q, Q, backend="stock")
    assert mps_sdpa.get_call_stats() == {"cpu": 2, "stock": 2}
    assert mps_sdpa.get_fallback_stats() == {}


def test_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_SDPA_BACKEND", "stock")
    environment.cache_clear()
    engine.forget_options()
    sdpa_opt(Q, Q, Q)
    assert mps_sdpa.get_call_stats() == {"stock": 1}
    sdpa_opt(Q, Q, Q, backend="cpu")
    assert mps_sdpa.get_call_stats() == {"cpu": 1, "stock": 1}


def test_environment_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(name.startswith("MPS_SDPA_") for name in VARIABLES)
    for word, level in (("1", logging.INFO), ("warn", logging.WARNING), ("0", logging.DEBUG)):
        monkeypatch.setenv("MPS_SDPA_LOG_FALLBACKS", word)
        environment.cache_clear()
        assert environment().fallback_level == level
    monkeypatch.setenv("MPS_SDPA_THREADS", "many")
    environment.cache_clear()
    with pytest.raises(RuntimeError, match="MPS_SDPA_THREADS must be a number from 1 to 1024"):
        environment()


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    found = mps_sdpa.explain(Q, Q, Q, causal=True)
    assert found["backend"] == "cpu"
    assert found["problem"] == "float32 B1 H2 L7 D8 causal"
    assert set(APPLE) <= set(found["rejected"])
    assert "back end  cpu" in capsys.readouterr().out
    assert mps_sdpa.explain(Q, Q, Q, backend="stock", quiet=True)["backend"] == "stock"
    training = mps_sdpa.explain(Q, Q, Q, training=True, quiet=True)
    assert training["pass"] == "backward" and "a key head" in training["plan"]
    assert capsys.readouterr().out == ""
    assert mps_sdpa.get_call_stats() == {}


class Subclass(torch.Tensor):
    """A tensor that only torch's own dispatch knows."""


def test_what_is_not_ours_goes_to_torch_and_is_counted() -> None:
    sub = Q.as_subclass(Subclass)
    out = sdpa_opt(sub, sub, sub)
    assert type(out) is Subclass
    meta = Q.to("meta")
    assert sdpa_opt(meta, meta, meta).shape == Q.shape
    assert mps_sdpa.get_fallback_stats() == {
        "tensor subclass": 1,
        "not on this device (meta)": 1,
    }
    assert mps_sdpa.get_call_stats() == {"stock": 2}


def test_a_failed_call_is_not_counted() -> None:
    meta = Q.to("meta")
    with pytest.raises(RuntimeError):
        sdpa_opt(meta, meta[..., :4], meta)
    with pytest.raises(RuntimeError):
        sdpa_opt(Q, Q[..., :4], Q)
    assert mps_sdpa.get_fallback_stats() == {}
    assert mps_sdpa.get_call_stats() == {}


def test_fallbacks_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MPS_SDPA_LOG_FALLBACKS", "warn")
    environment.cache_clear()
    meta = Q.to("meta")
    with caplog.at_level(logging.WARNING, "mps_sdpa.fallback"):
        sdpa_opt(meta, meta, meta)
    assert "fallback: not on this device (meta)" in caplog.text


def test_strict_makes_a_fallback_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_SDPA_STRICT", "1")
    environment.cache_clear()
    meta = Q.to("meta")
    with pytest.raises(RuntimeError, match=r"MPS_SDPA_STRICT is set and back end 'cpu' cannot run"):
        sdpa_opt(meta, meta, meta, backend="cpu")
    assert mps_sdpa.get_fallback_stats() == {}
    assert mps_sdpa.get_call_stats() == {}
    assert sdpa_opt(meta, meta, meta).shape == Q.shape  # "auto" asked for none in particular
    sdpa_opt(Q, Q, Q, backend="cpu")


def test_statistics_print(capsys: pytest.CaptureFixture[str]) -> None:
    sdpa_opt(Q, Q, Q)
    mps_sdpa.print_call_stats("of a test")
    mps_sdpa.print_fallback_stats()
    text = capsys.readouterr().out
    assert "attention calls of a test:" in text
    assert "1  cpu" in text
    assert "attention fallbacks:\n  none" in text
    mps_sdpa.reset_call_stats()
    assert mps_sdpa.get_call_stats() == {}


_ALWAYS = [[[("cpu", 0.0)]] * 2] * 5
_NEVER = [[[("cpu", float("inf"))]] * 2] * 5


def test_below_the_threshold_torch_runs() -> None:
    engine.set_thresholds("cpu", [_NEVER, _ALWAYS])
    try:
        out = sdpa_opt(Q, Q, Q)
        assert torch.equal(out, F.scaled_dot_product_attention(Q, Q, Q))
        assert mps_sdpa.get_fallback_stats() == {"short sequence": 1}
        sdpa_opt(Q, Q, Q, backend="cpu")
        assert mps_sdpa.get_call_stats() == {"cpu": 1, "stock": 1}
    finally:
        engine.set_thresholds("cpu", None)


def test_training_has_its_own_threshold() -> None:
    q = Q.clone().requires_grad_()
    engine.set_thresholds("cpu", [_ALWAYS, _NEVER])
    try:
        sdpa_opt(q, q, q).sum().backward()
        sdpa_opt(Q, Q, Q)
        assert mps_sdpa.get_call_stats() == {"cpu": 1, "stock": 1}
        assert q.grad is not None
    finally:
        engine.set_thresholds("cpu", None)


def test_a_gradient_of_a_gradient_is_a_fallback() -> None:
    q = Q.clone().requires_grad_()
    packed = torch.randn(8, 2, 8, requires_grad=True)
    starts = torch.tensor([0, 3, 8], dtype=torch.int32)
    for out, leaf in (
        (sdpa_opt(q, q, q), q),
        (mps_sdpa.attention(q, q, q, softcap=1.0), q),
        (mps_sdpa.varlen_attention(packed, packed, packed, starts, starts, 5, 5), packed),
    ):
        mps_sdpa.reset_fallback_stats()
        torch.autograd.grad(out.sum(), leaf, retain_graph=True)
        assert mps_sdpa.get_fallback_stats() == {}
        torch.autograd.grad(out.sum(), leaf, create_graph=True)
        assert mps_sdpa.get_fallback_stats() == {"gradient that is differentiated again": 1}


@pytest.mark.parametrize("options", [{"window": (2, 0)}, {"softcap": 1.0}, {"return_lse": True}])
def test_stock_has_every_option_of_attention(options: dict[str, object]) -> None:
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    sinks = torch.randn(2)
    ours = mps_sdpa.attention(q, k, v, sinks=sinks, **options)
    stock = mps_sdpa.attention(q, k, v, sinks=sinks, backend="stock", **options)
    torch.testing.assert_close(ours, stock)
    assert mps_sdpa.get_call_stats() == {"cpu": 1, "stock": 1}
