# SPDX-License-Identifier: MIT
"""The table of speeds (benchmarks/): its rows, its files, and flex_attention as a peer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from mps_sdpa.harness import calls
from mps_sdpa.harness.cases import Case
from mps_sdpa.harness.data import make_inputs

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
_ROW_KEYS = {"case", "which", "threads", "baseline", "ours_ms", "baseline_ms", "ratio", "share"}


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(_BENCHMARKS))


def run_table(folder: Path, *words: str) -> str:
    command = [sys.executable, str(_BENCHMARKS / "table.py"), "--out", str(folder), "--pairs", "3"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_parts_of_the_table_come_together_in_one_file(tmp_path: Path) -> None:
    smallest = ["--case", "H1 D8 L4", "--threads", "1", "--write"]
    said = run_table(tmp_path, *smallest, "--pass", "forward")
    assert "fp32 H1 D8 L4" in said
    assert "Of 1 rows with back end cpu" in said
    run_table(tmp_path, *smallest)
    (kept,) = tmp_path.glob("*.json")
    rows = json.loads(kept.read_text())["rows"]
    assert [row["which"] for row in rows] == ["forward", "train"]
    assert set(rows[0]) >= _ROW_KEYS
    assert 0 < rows[0]["share"]["median"] < 1
    page = kept.with_suffix(".md").read_text()
    assert page.count("| fp32 H1 D8 L4 |") == 2
    assert "Peaks: float32" in page


def test_a_look_writes_nothing(tmp_path: Path) -> None:
    run_table(tmp_path, "--case", "H1 D8 L4", "--threads", "1", "--pass", "forward")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "options",
    [
        {"causal": "upper_left", "window": (3, -1)},
        {"window": (3, 2)},
        {"softcap": 2.0},
        {"sinks": True},
        {"sinks": True, "causal": "upper_left", "window": (5, -1)},
    ],
)
def test_flex_attention_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    import flex

    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    case = Case("small", "speed", "float32", 1, 4, 2, 16, 16, 16, 16, **options)  # type: ignore[arg-type]
    inputs = make_inputs(case)
    assert flex.can_express(case)
    actual = flex.forward_call(case, inputs)()
    torch.testing.assert_close(actual, calls.attention(case, inputs, "cpu"))


def test_a_realistic_mean_weighs_its_cases() -> None:
    import result_file

    row = {"suite": "realistic", "which": "forward", "threads": 2, "backend": "cpu"}
    rows = [
        {**row, "ratios": [0.5] * 5, "weight": 3},
        {**row, "ratios": [1.0] * 5, "weight": 1},
        {**row, "suite": "speed", "ratios": [9.0] * 5, "weight": 1},
    ]
    (mean,) = result_file.means(rows)
    assert mean["cases"] == 2
    assert mean["ratio"]["value"] == pytest.approx(2**0.75)


def row_of(case: str, value: float, high: float, **others: object) -> dict[str, object]:
    row = {"case": case, "which": "train", "threads": 2, "baseline": "torch", "backend": "auto"}
    return {**row, "ratio": {"value": value, "low": value - 0.01, "high": high}, **others}


def test_the_verdict_names_what_is_slower_beyond_doubt_and_nothing_else() -> None:
    import result_file

    fine = [
        row_of("within 3 %", 0.98, 0.99),
        row_of("spans 1", 0.90, 1.01),
        row_of("a peer", 0.50, 0.51, baseline="flex"),
    ]
    assert result_file.verdicts(fine) == [
        "Of 2 rows with back end auto none is slower than torch by more than 3 %."
    ]
    slow = [*fine, row_of("tiny", 0.9, 0.95), row_of("odd", 0.8, 0.9, baseline="composite")]
    assert result_file.verdicts(slow) == [
        "Of 4 rows with back end auto 2 are slower than torch by more than 3 %: "
        "tiny train on 2 threads 0.90 [0.89, 0.95]; odd train on 2 threads 0.80 [0.79, 0.90]."
    ]


def test_a_slower_row_must_be_seen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    import table

    readings = iter([0.9, 1.02, 1.1])

    def measure(*_: object) -> dict[str, object]:
        value = next(readings)
        return row_of("tiny", value, value + 0.01, notes=[])

    monkeypatch.setattr(table.measurement, "measure", measure)
    again, once = (table.measured(None, None, None) for _ in range(2))
    assert again["ratio"]["value"] == 1.02
    assert again["notes"] == ["measured again; first 0.90"]
    assert once["ratio"]["value"] == 1.1 and once["notes"] == []
