# SPDX-License-Identifier: MIT
"""The command: what it prints where no terminal is, its exit codes, and its one-line errors."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mps_sdpa import backends, cli


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of `mps-sdpa WORDS`."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def call_json(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    code, out, _ = call(capsys, *words)
    return code, json.loads(out)


def test_list_backends(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list-backends")
    assert code == 0
    assert out.split()[-2:] == ["cpu", "stock"]
    _, listed = call_json(capsys, "list-backends", "--json")
    assert [entry["name"] for entry in listed] == [
        "metal",
        "mpsgraph_zc",
        "mpsgraph",
        "metal_proto",
        "cpu",
        "stock",
    ]
    assert all(entry["available"] != bool(entry["reason"]) for entry in listed)


def test_self_test(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = call_json(capsys, "self-test", "--device", "cpu")
    assert code == 0
    assert found["status"] == "pass"
    assert {"env", "available_backends", "correctness", "benchmark", "elapsed_s"} <= set(found)
    assert set(found["correctness"]) == {"fp32", "fp16", "bf16"}
    assert {"max_abs_diff", "tol", "pass"} <= set(found["correctness"]["fp32"])
    keys = {"shape", "stock_ms", "auto_backend", "auto_ms", "speedup_auto_vs_stock"}
    assert keys <= set(found["benchmark"])


def test_correctness(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    words = ("correctness", "--suite", "short", "--backend", "cpu", "--limit", 3, "--out", out)
    code, found = call_json(capsys, *words)
    assert code == 0
    assert (found["n"], found["n_pass"], found["n_hard"], found["n_soft"]) == (3, 3, 0, 0)
    results = json.loads(out.read_text())["results"]
    keys = "case_id backend passed failure_class max_abs_err max_rel_err shape_mismatch error"
    assert {*keys.split(), "nan_inf_leak"} <= set(results[0])


def test_correctness_fails_on_a_wrong_back_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mps_sdpa

    def broken(*args: Any, **named: Any) -> Any:
        out, lse = mps_sdpa.attention(*args, **named)
        return out + 1, lse

    monkeypatch.setattr("mps_sdpa.harness.calls._attention", broken)
    words = ("correctness", "--suite", "short", "--limit", 2, "--pass", "fwd")
    code, found = call_json(capsys, *words)
    assert code == 1
    assert found["n_soft"] == 2


def test_correctness_runs_one_case_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("correctness", "--suite", "short", "--case", "fp32 B1 H1 L4 D8")
    code, found = call_json(capsys, *words)
    assert (code, found["n"]) == (0, 1)


def test_benchmark(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "result.csv"
    words = ("benchmark", "--suite", "short", "--limit", 2, "--pairs", 3, "--out", out)
    code, found = call_json(capsys, *words)
    assert code == 0
    assert found["n_cases"] == 2
    assert found["weighted_geomean_candidate_over_baseline"] > 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    columns = "case_id paired_geomean_ratio cold_ms delta_driver_bytes delta_current_bytes"
    assert {*columns.split(), "weight", "note"} <= set(rows[0])
    assert float(rows[0]["paired_geomean_ratio"]) > 0


def test_benchmark_times_training_and_a_cold_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    words = ("benchmark", "--suite", "short", "--limit", 1, "--pairs", 3, "--pass", "train")
    code, _ = call_json(capsys, *words, "--measure-cold", "--out", out)
    row = json.loads(out.read_text())["rows"][0]
    assert code == 0
    assert row["cold_ms"] > row["candidate_ms"]
    assert set(row["cold"]) == {"candidate", "baseline"}
    for cold in row["cold"].values():
        assert cold["import_ms"] > cold["first_call_ms"] > 0
    assert row["verdict"] in {"faster", "slower", "undecided"}


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("explain", "--shape", "1,32/8,1,4096,128", "--dtype", "bf16", "--device", "cpu")
    code, found = call_json(capsys, *words, "--causal", "lower_right", "--json")
    assert code == 0
    assert found["backend"] == "cpu"
    assert found["why"] and found["plan"]
    assert "metal" in found["rejected"]
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert "back end" in out and "MPS_SDPA_BACKEND" in out


@pytest.mark.parametrize("words", [("--backend", "metal"), ("--chip", "M1", "--train")])
def test_explain_plans_for_a_chip_that_is_not_here(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("explain", "--shape", "1,8,256,256,64", "--dtype", "bf16", "--device", "cpu", *words)
    code, found = call_json(capsys, *base, "--json")
    assert code == 0
    assert found["backend"] == "metal"
    assert found["chip"] in ("M1", "M4")
    assert "grid" in found["plan"] and "buffers" in found["plan"]
    assert len(found["source"]) == (1 if "metal" in words else 3)
    assert all(kernel in text for kernel, text in found["source"].items())
    code, out, _ = call(capsys, *base)
    assert code == 0
    assert "SDPA_INSTANTIATE" in out and "made without one" in out


def test_the_suites_are_those_of_the_table() -> None:
    from mps_sdpa import cli_options
    from mps_sdpa.harness.cases import suite_names

    assert suite_names() == cli_options.SUITES


def test_no_colour_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    from mps_sdpa import cli_options

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert cli_options.console().color_system is not None
    monkeypatch.setenv("NO_COLOR", "1")
    with (plain := cli_options.console()).capture() as shown:
        plain.print("[red]fail[/]")
    assert shown.get() == "fail\n"


def test_explain_estimates_the_time_on_a_chip(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("explain", "--backend", "metal", "--shape", "1,8,1024,1024,64", "--dtype", "bf16")
    for chip in ("m4", "M1", "m3-max"):
        code, found = call_json(capsys, *words, "--chip", chip, "--train", "--json")
        assert code == 0
        assert found["problem"] == "bfloat16 B1 H8 L1024 D64"
        assert "grad_key_value_bfloat_q8_v8" in found["plan"]
        assert "estimate" in found["estimate"]
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert "estimate" in out
    code, _, error = call(capsys, *words, "--chip", "m0")
    assert code == 2
    assert "m0" in error and "m4" in error


def test_self_test_writes_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "self.json"
    code, _ = call_json(capsys, "self-test", "--device", "cpu", "--out", out)
    assert code == 0
    found = json.loads(out.read_text())
    assert found["status"] == "pass"
    assert found["messages"]["not_compared"].startswith("There is no Objective-C runtime")
    assert "metal" in found["unavailable"]
    assert found["gpu"] is None


def test_demo_trains_both_alike(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mps_sdpa.demo import model, train

    tiny = model.Size(layers=1, heads=2, dim=32, context=64)
    monkeypatch.setattr(train.Recipe, "__init__", recipe_of(tiny))
    code, out, _ = call(capsys, "demo", "--steps", 3, "--device", "cpu", "--text", __file__)
    assert code == 0
    assert "test_cli.py" in out
    assert "peak memory of a step" in out
    assert "attention's share" in out


def test_demo_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mps_sdpa.demo import model, train

    tiny = model.Size(layers=1, heads=2, dim=32, context=64)
    monkeypatch.setattr(train.Recipe, "__init__", recipe_of(tiny))
    code, found = call_json(capsys, "demo", "--steps", 2, "--text", __file__, "--json")
    assert code == 0
    assert found["steps"] == len(found["ours"]["losses"]) == len(found["torch"]["losses"]) == 2
    assert found["largest_loss_difference"] < 1e-3
    assert 0 < found["ours"]["attention_ms"] < found["ours"]["step_ms"]


def recipe_of(size: Any) -> Any:
    def initialise(self: Any, *, steps: int, device: str) -> None:
        for name, value in {"steps": steps, "device": device, "size": size, "batch": 2}.items():
            object.__setattr__(self, name, value)

    return initialise


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["benchmark", "--suite", "nope"], "'nope' is not one of 'realistic'"),
        (["benchmark", "--backend", "best"], "'best' is not one of 'auto'"),
        (["benchmark", "--out", "x.txt"], "must end in .csv, .json, .html"),
        (["correctness", "--out", "/nowhere/x.json"], "does not exist or cannot be written"),
        (["correctness", "--suite", "short", "--case", "x"], "no case named 'x'"),
        (["correctness", "--limit", "0"], "0 is not in the range x>=1"),
        (["explain", "--shape", "1,2"], "must be five numbers B,H,Lq,Lk,D"),
        (["explain", "--shape", "1,0,1,1,1"], "must have positive numbers"),
        (["explain", "--shape", "1,1,9999999999,1,1"], "up to 2147483647"),
        (["explain", "--shape", "1,3/2,4,4,8"], "query has 3 heads (dimension -3), which key's 2"),
        (["explain", "--shape", "1,1,4,4,999"], "head dimensions up to 512 are allowed"),
        (["explain", "--shape", "9999,9999,9999,9999,64"], "memory"),
        (["explain", "--window", "-2", "0"], "window"),
        (["correctness", "--threads", "100000"], "100000 is not in the range 1<=x<=1024"),
        (["explain", "--dropout", "2"], "2.0 is not in the range 0<=x<=1"),
        (["demo", "--text", "nowhere.txt"], "'nowhere.txt' does not exist"),
        (["run", "nowhere.py"], "there is no file 'nowhere.py'"),
        (["run", "-m", "nowhere"], "there is no module 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ") and err.count("\n") == 1
    assert text in err


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("MPS_SDPA_BACKEND=fast", "unknown back end 'fast'; known are auto, metal"),
        ("MPS_SDPA_BACKEND=metal_proto", "back end 'metal_proto' is not available: Not here."),
        (
            "MPS_SDPA_THREADS=many",
            "MPS_SDPA_THREADS must be a number from 1 to 1024, but it is 'many'",
        ),
        ("MPS_SDPA_THREADS=99999", "must be a number from 1 to 1024, but it is '99999'"),
        ("MPS_SDPA_THREADS=²", "must be a number from 1 to 1024, but it is '²'"),
    ],
)
def test_mistaken_variables_are_one_line(
    variable: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable.split("="))
    monkeypatch.setattr(backends, "reason_against", lambda _: "Not here.")
    code, _, err = call(capsys, "list-backends")
    assert code == 2
    assert text in err
    assert err.count("\n") == 1


def test_an_unknown_instruction_set_is_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "mps_sdpa", "list-backends"],
        env={**os.environ, "MPS_SDPA_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert 'MPS_SDPA_ISA names the instruction set "sse9"; this processor' in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_absent_device(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "self-test", "--device", "mps")
    assert code == 2
    assert err == "Error: device 'mps' is not present: torch finds no Apple GPU here\n"


@pytest.mark.parametrize(
    "command", ["", *(name for name in cli._COMMANDS if name not in ("calibrate", "report"))]
)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, *([command] if command else []), "--help")
    assert code == 0
    assert out.startswith("Usage: mps-sdpa")


_BASH = """
eval "$(_MPS_SDPA_COMPLETE=bash_source mps-sdpa)"
complete -p mps-sdpa
COMP_WORDS=(mps-sdpa bench) COMP_CWORD=1
_mps_sdpa_completion mps-sdpa
echo "found ${COMPREPLY[*]}"
"""
# zsh completes in its line editor only: what the generated function hands to it is looked at.
_ZSH = """
compdef() { print "registered $*" }
eval "$(_MPS_SDPA_COMPLETE=zsh_source mps-sdpa)"
_describe() { print -l "found ${(@P)3}" }
words=(mps-sdpa bench) CURRENT=2
_mps_sdpa_completion
"""
_FISH = """
_MPS_SDPA_COMPLETE=fish_source mps-sdpa | source
echo found (complete --do-complete "mps-sdpa bench")
echo found (complete --do-complete "mps-sdpa explain --dtype b")
"""


@pytest.mark.parametrize(
    ("shell", "script", "expected"),
    [
        ("bash", _BASH, ["complete -o nosort -F _mps_sdpa_completion mps-sdpa", "found benchmark"]),
        ("zsh", _ZSH, ["registered _mps_sdpa_completion mps-sdpa", "found benchmark:"]),
        ("fish", _FISH, ["found benchmark", "found bf16"]),
    ],
)
def test_completion(shell: str, script: str, expected: list[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} to complete in")
    where = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shell, "-c", script], env={**os.environ, "PATH": where}, capture_output=True, text=True
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected), done.stdout
    assert all(map(str.startswith, lines, expected)), done.stdout
