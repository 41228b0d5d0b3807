# SPDX-License-Identifier: MIT
"""`mps-sdpa run`: the program gets what Python itself would give it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_ATTENTION = """
import torch
from torch.nn.functional import scaled_dot_product_attention as attend
q = torch.randn(1, 2, 64, 16)
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mps_sdpa", "run", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def script(folder: Path, text: str) -> str:
    (folder / "program.py").write_text(text)
    return "program.py"


def without_statistics(text: str) -> str:
    return "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith("mps-sdpa: ")
    )


def test_attention_is_ours_and_counted(tmp_path: Path) -> None:
    text = "import torch.nn.functional as F\n" + _ATTENTION
    done = run(tmp_path, script(tmp_path, text + "F.scaled_dot_product_attention(q, q, q)\n"))
    assert done.returncode == 0
    assert done.stdout == ""
    assert "mps-sdpa: attention calls: cpu 1\n" in done.stderr
    assert "mps-sdpa: attention fallbacks: none\n" in done.stderr


def test_statistics_as_json(tmp_path: Path) -> None:
    name = script(tmp_path, _ATTENTION + "import sys\nattend(q, q, q)\nprint(sys.argv[1:])\n")
    done = run(tmp_path, "--json", name, "--json")
    assert done.stdout == "['--json']\n"
    assert json.loads(done.stderr) == {"calls": {"cpu": 1}, "fallbacks": {}}


def test_main_and_arguments_are_the_programs_own(tmp_path: Path) -> None:
    text = "import sys, __main__\nhere = 1\nprint(__name__, sys.argv, __file__, __main__.here)\n"
    name = script(tmp_path, text + "import beside; print(beside.x)\n")
    (tmp_path / "beside.py").write_text("x = 5\n")
    ours, pythons = (
        run(tmp_path, name, "--help", "-m", "a b"),
        python(tmp_path, name, "--help", "-m", "a b"),
    )
    assert (ours.returncode, pythons.returncode) == (0, 0)
    assert ours.stdout.replace(str(tmp_path) + "/", "") == pythons.stdout.replace(
        str(tmp_path) + "/", ""
    )


def test_a_module_runs_as_main(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text(
        "import sys\nfrom . import __name__ as parent\nprint(__name__, parent, sys.argv[1:])\n"
    )
    done = run(tmp_path, "-m", "package.train", "--epochs", "2")
    assert done.stdout == "__main__ package ['--epochs', '2']\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('stopped')", 1),
        ("import sys; sys.exit()", 0),
        ("1 / 0", 1),
        ("def f(:", 1),
    ],
)
def test_exit_codes_and_tracebacks(text: str, code: int, tmp_path: Path) -> None:
    name = script(tmp_path, f"def inner():\n    pass\n{text}\n")
    ours, pythons = run(tmp_path, name), python(tmp_path, name)
    assert ours.returncode == pythons.returncode == code
    shown = without_statistics(ours.stderr).replace(str(tmp_path) + "/", "")
    assert shown == pythons.stderr.replace(str(tmp_path) + "/", "")


def test_a_signal_ends_it_as_it_ends_python(tmp_path: Path) -> None:
    name = script(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    assert run(tmp_path, name).returncode == -signal.SIGTERM


def test_an_interrupt_reaches_the_program(tmp_path: Path) -> None:
    text = (
        # What a shell starts in the background ignores interrupts, and so do its children.
        "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    print('caught')\n"
    )
    done = run(tmp_path, script(tmp_path, text))
    assert (done.returncode, done.stdout) == (0, "caught\n")


@pytest.mark.parametrize("end", ["sys.stdout.close()", "sys.stdout = None"])
def test_statistics_are_printed_whatever_the_program_does_with_its_output(
    end: str, tmp_path: Path
) -> None:
    done = run(tmp_path, script(tmp_path, f"import sys\nprint('said')\n{end}\n"))
    assert (done.returncode, done.stdout) == (0, "said\n")
    assert done.stderr == ("mps-sdpa: attention calls: none\nmps-sdpa: attention fallbacks: none\n")


def test_a_closed_stderr_is_no_fault(tmp_path: Path) -> None:
    done = run(tmp_path, script(tmp_path, "import sys\nprint('said')\nsys.stderr.close()\n"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "said\n", "")
