# SPDX-License-Identifier: MIT
"""The parts of the harness: cases, tensors, errors, statistics and memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mps_sdpa
from mps_sdpa.harness import correctness, environment, errors, timing
from mps_sdpa.harness.cases import Case, MaskSpec, suite, suite_names
from mps_sdpa.harness.data import lay_out, make_inputs, make_mask
from mps_sdpa.harness.errors import Tolerance, compare
from mps_sdpa.harness.memory import peak_bytes
from mps_sdpa.harness.peaks import Peaks


def make_case(**changes: object) -> Case:
    fields = {
        "name": "small",
        "suite": "short",
        "dtype": "float32",
        "batch": 2,
        "q_heads": 4,
        "kv_heads": 2,
        "q_len": 19,
        "kv_len": 37,
        "qk_dim": 16,
        "v_dim": 8,
    }
    return Case(**{**fields, **changes})  # type: ignore[arg-type]


# --- cases ---


def test_suites_have_the_originals_sizes() -> None:
    sizes = {name: len(suite(name)) for name in ("realistic", "correctness", "extended", "general")}
    assert sizes == {"realistic": 10, "correctness": 1953, "extended": 23, "general": 540}
    assert {"models", "masks", "training", "decode", "short"} <= set(suite_names())


def test_limit_spreads_over_the_suite() -> None:
    chosen = suite("correctness", limit=50)
    assert len(chosen) == 50
    assert {case.batch for case in chosen} == {1, 2, 4}


def test_flops_count_visible_pairs() -> None:
    assert make_case().flops() == 2 * 2 * 4 * 19 * 37 * (16 + 8)
    square = make_case(q_len=4, kv_len=4, causal="upper_left")
    assert square.flops() == 2 * 2 * 4 * 10 * (16 + 8)
    assert square.flops(backward=True) == 3.5 * square.flops()
    window = make_case(q_len=3, kv_len=5, causal="lower_right", window=(1, 0))
    assert window.flops() == 2 * 2 * 4 * 6 * (16 + 8)


# --- tensors ---


@pytest.mark.parametrize(
    ("layout", "is_contiguous"),
    [
        ("contiguous", True),
        ("transposed", False),
        ("sliced", False),
        ("column_stride", False),
        ("huge_rows", False),
        ("huge_heads", False),
    ],
)
def test_layouts_are_real(layout: str, is_contiguous: bool) -> None:
    plain = torch.randn(2, 3, 5, 8)
    placed = lay_out(plain, layout)
    assert torch.equal(placed, plain)
    assert placed.is_contiguous() == is_contiguous
    if layout.startswith("huge"):
        assert max(placed.stride()) > 2**31


def test_expanded_batch_has_stride_zero() -> None:
    inputs = make_inputs(make_case(layout="expanded_batch"))
    assert inputs.key.stride(0) == 0
    assert inputs.key.shape[0] == 2


def test_inputs_are_the_same_for_the_same_seed() -> None:
    first, second = make_inputs(make_case(), seed=4), make_inputs(make_case(), seed=4)
    assert torch.equal(first.key, second.key)
    assert not torch.equal(first.key, make_inputs(make_case(), seed=5).key)


def test_mask_patterns() -> None:
    def mask(kind: str, dtype: str, pattern: str) -> torch.Tensor:
        made = make_mask(make_case(mask=MaskSpec(kind, dtype, pattern)), torch.Generator())
        assert made is not None
        return made

    assert mask("full", "bool", "empty_row").any(-1).flatten().tolist().count(False) == 2
    assert mask("keys", "bool", "tail").sum().item() == 2 * 25
    assert not mask("per_head", "bool", "all").any()
    assert mask("matrix", "float32", "soft").isfinite().all()
    assert mask("matrix", "float16", "random").isinf().any()


# --- errors ---


def test_compare_finds_the_worst_element() -> None:
    expected = torch.zeros(2, 3, dtype=torch.float64)
    actual = expected.clone()
    actual[1, 2] = 0.5
    found = compare("out", actual, expected, Tolerance(0.1, 0.0))
    assert (found.failure, found.index, found.max_abs_err) == ("value", (1, 2), 0.5)
    assert found.sentence() == "out[1, 2] is 0.5; the reference is 0"


def test_compare_knows_nan_infinity_and_shape() -> None:
    allowed = Tolerance(1.0, 1.0)
    infinite = torch.tensor([1.0, -torch.inf])
    assert compare("lse", infinite, infinite, allowed).failure is None
    assert compare("lse", torch.tensor([1.0, 2.0]), infinite, allowed).failure == "value"
    assert compare("out", torch.tensor([torch.nan]), torch.ones(1), allowed).failure == "nan"
    assert compare("out", torch.tensor([torch.inf]), torch.ones(1), allowed).failure == "nan"
    assert compare("out", torch.ones(2), torch.ones(3), allowed).failure == "shape"
    assert compare("out", torch.ones(0), torch.ones(0), allowed).failure is None


def test_tolerances_are_the_contracts() -> None:
    assert errors.tolerance(torch.float32) == Tolerance(5e-6, 5e-5)
    assert errors.tolerance(torch.bfloat16, gradient=True) == Tolerance(1e-2, 1e-1)


# --- correctness ---

SPECIAL = [
    make_case(),
    make_case(dtype="bfloat16", causal="lower_right", softcap=5.0),
    make_case(sinks=True, window=(9, 4), grad_lse=True),
    make_case(mask=MaskSpec("per_head", "float32", "random"), dropout=0.2),
    make_case(mask=MaskSpec("keys", "bool", "tail"), layout="sliced"),
]


@pytest.mark.parametrize("case", SPECIAL, ids=range(len(SPECIAL)))
@pytest.mark.parametrize("backend", ["auto", "cpu", "stock"])
def test_check_passes_what_is_right(case: Case, backend: str) -> None:
    outcome = correctness.check(case, backend)
    assert outcome.passed, outcome.error


def _wrong(kind: str, tensor: torch.Tensor) -> torch.Tensor:
    return {
        "value": lambda: tensor * 1.01,
        "nan": lambda: tensor / 0,
        "shape": lambda: tensor[:1],
        "dtype": lambda: tensor.double(),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "failure_class"),
    [("value", "soft"), ("nan", "hard"), ("shape", "hard"), ("dtype", "hard")],
)
def test_check_catches(kind: str, failure_class: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: torch.Tensor, **named: object) -> object:
        out, lse = mps_sdpa.attention(*args, **named)  # type: ignore[call-overload]
        return _wrong(kind, out), lse

    monkeypatch.setattr("mps_sdpa.harness.calls._attention", broken)
    outcome = correctness.check(make_case(), "cpu", gradients=False)
    assert (outcome.passed, outcome.failure_kind) == (False, kind)
    assert outcome.failure_class == failure_class
    assert outcome.reproduce is not None
    counts = correctness.summary([outcome])
    assert counts["n_hard"] + counts["n_soft"] == counts["n"] == 1


def test_check_catches_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **named: object) -> object:
        raise ValueError("no")

    monkeypatch.setattr("mps_sdpa.harness.calls._attention", broken)
    outcome = correctness.check(make_case(), "cpu")
    assert outcome.failure_kind == "exception"
    assert outcome.error == "ValueError: no"


# --- statistics ---


def test_paired_times_both_calls_equally_often() -> None:
    counts = [0, 0]

    def call(which: int) -> None:
        counts[which] += 1

    timed = timing.paired(lambda: call(0), lambda: call(1), pairs=7)
    assert len(timed.ratios) == 7
    assert min(counts) >= 7


def test_interval_covers_the_median() -> None:
    values = np.random.default_rng(1).lognormal(0.3, 0.1, size=31)
    found = timing.median_interval(values)
    assert found.low < found.value < found.high
    assert found.is_conclusive
    assert not timing.median_interval(np.array([0.9, 1.0, 1.1, 0.95, 1.05])).is_conclusive


def test_weighted_mean_weighs() -> None:
    ratios = [np.full(5, 0.5), np.full(5, 2.0)]
    assert timing.weighted_geomean(ratios, [1, 1]).value == pytest.approx(1.0)
    assert timing.weighted_geomean(ratios, [3, 1]).value == pytest.approx(0.5**0.5)


def test_outliers_and_throttling_are_noted() -> None:
    steady = np.full(30, 1.0) + np.linspace(0, 0.001, 30)
    disturbed = steady.copy()
    disturbed[4] = 3.0
    assert timing.Paired(steady, steady).notes() == []
    assert timing.Paired(disturbed, steady).notes() == ["1 of 30 pairs are outliers"]
    slowing = np.linspace(1.0, 1.5, 30)
    assert "slowed down" in timing.Paired(slowing, slowing).notes()[0]


def test_share_uses_the_bound_that_applies() -> None:
    peaks = Peaks({"float32": 100.0}, bandwidth=10.0)
    assert peaks.share(50.0, 1.0, "float32", 1.0) == pytest.approx(0.5)
    assert peaks.share(1.0, 5.0, "float32", 1.0) == pytest.approx(0.5)


# --- what disturbs a measurement ---


@pytest.fixture
def pmset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What macOS' command of that name prints, in a process that believes to be there."""
    said = tmp_path / "said"
    command = tmp_path / "pmset"
    command.write_text(f'#!/bin/sh\n[ "$*" = "-g therm" ] && cat {said}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(environment.platform, "system", lambda: "Darwin")
    return said


@pytest.mark.parametrize(
    ("said", "notes"),
    [
        ("CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 100\n", []),
        (
            "CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 57\n",
            ["the processor is held at 57 % to cool it"],
        ),
        ("Note: No thermal warning level has been recorded\n", []),
    ],
)
def test_throttling_is_noted_on_macos(said: str, notes: list[str], pmset: Path) -> None:
    pmset.write_text(said)
    assert environment.thermal_notes() == notes
    with environment.Watch() as watch:
        pass
    assert [note for note in watch.notes() if "cool" in note] == notes


def test_a_mac_without_pmset_is_no_error(pmset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(pmset.parent / "nowhere"))
    assert environment.thermal_notes() == []


def test_scarce_memory_and_load_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type("Memory", (), {"available": 2**30})
    monkeypatch.setattr(environment.psutil, "virtual_memory", memory)
    monkeypatch.setattr(environment.os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 2)
    assert environment.load_notes() == [
        "only 1.0 GB of memory is free",
        "the load average is 9.0 on 2 cores",
    ]


def test_memory_that_is_scarce_meanwhile_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    gigabytes = iter([8, 8, 1, 8])
    memory = type("Memory", (), {"available": property(lambda _: next(gigabytes) * 2**30)})
    monkeypatch.setattr(environment.psutil, "virtual_memory", memory)
    with environment.Watch() as watch:
        timing.paired(lambda: None, lambda: None, pairs=2, between=watch.look)
    assert watch.notes() == ["only 1.0 GB of memory is free"]


# --- memory ---


def test_peak_is_seen_even_when_it_is_freed() -> None:
    def call() -> None:
        for _ in range(3):
            torch.ones(2**24)  # 64 MB, freed at once

    peak = peak_bytes(call)
    assert peak is not None
    assert 60 * 2**20 < peak < 100 * 2**20
