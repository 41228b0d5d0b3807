# SPDX-License-Identifier: MIT
"""The command on terminals of all widths, and where its output cannot be written."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from mps_sdpa import cli, cli_benchmark, cli_check, cli_inspect, cli_options, explanation
from mps_sdpa.harness import self_check


def shown_on(
    width: int, monkeypatch: pytest.MonkeyPatch, show: object, *arguments: object
) -> list[str]:
    """The lines that `show` puts on a terminal of so many columns."""
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, no_color=True, highlight=False)
    monkeypatch.setattr(cli_options, "console", lambda: console)
    assert callable(show)
    show(*arguments)
    return text.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()


ROW = {
    "case_id": "bf16 B4 H8 L1024 D64 causal",
    "candidate_ms": 1234.5678,
    "baseline_ms": 2345.6789,
    "speedup": {"value": 1.9, "low": 1.85, "high": 1.95},
    "verdict": "faster",
    "peak_share": 0.5,
    "candidate_bytes": 2**20,
    "baseline_bytes": 2**21,
    "cold": {},
    "notes": [],
}
DOCUMENT = {
    "plan": {"candidate": "auto", "baseline": "stock"},
    "environment": {"chip": "a chip", "threads": 2, "torch": "2", "notes": []},
    "peaks": {"flops": {"float32": 1e9, "bfloat16": 1e9}, "bandwidth": 1e9},
    "rows": [ROW],
    "weighted_geomean_candidate_over_baseline": 0.5,
    "weighted_geomean_interval": [0.4, 0.6],
}


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_a_benchmark_is_readable_at_every_width(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown_on(width, monkeypatch, cli_benchmark.show, DOCUMENT)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for figure in ("1234.568 ms", "2345.679 ms", "1.90 [1.85, 1.95]", "50%", "1.0 MB / 2.0 MB"):
        assert figure in text
    assert "…" not in text


@pytest.mark.parametrize("width", [40, 80])
def test_a_self_test_is_readable_at_every_width(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = self_check.run("cpu")
    lines = shown_on(width, monkeypatch, cli_check._show_self_test, found)
    assert f"{found['correctness']['fp32']['max_abs_diff']:.1e}" in " ".join(lines)
    assert "…" not in "".join(lines)


def test_an_explanation_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 8, 8, 64, 64, 64, 64)
    flags = {"backend": "auto", "device": "cpu", "dtype": "fp32", "causal": "no", "window": None}
    rest = {"softcap": 0.0, "dropout": 0.0, "mask": "none", "train": False}
    found = cli_inspect._explain_shape(shape, None, **flags, **rest)  # type: ignore[arg-type]
    lines = shown_on(40, monkeypatch, cli_inspect._show_explanation, found)
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 40
    assert explanation.HOW_TO_CHANGE.replace(" ", "") in "".join(lines).replace(" ", "")


@pytest.mark.parametrize("words", ["list-backends", "list-backends --json", "explain"])
def test_a_closed_or_full_output_is_no_traceback(words: str) -> None:
    command = f"{sys.executable} -m mps_sdpa {words}"
    for where, code in ((">&-", 0), ("> /dev/full", 1)):
        done = subprocess.run(["bash", "-c", f"{command} {where}"], capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == code


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(cli_inspect.shared, "print_json", write)
        cli.main(["list-backends", "--json"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Error: [Errno 28] No space left on device\n"
