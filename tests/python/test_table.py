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
