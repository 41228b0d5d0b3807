# SPDX-License-Identifier: MIT
"""Every command that the documents and `--help` show is run, in its cheapest form.

Cheapest: a few flags are added that make it shorter, files that it names are there, and the demo's
model is tiny. What cannot be run here is in EXCEPTIONS, and its test is skipped with that reason.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from test_cli import recipe_of
from test_docs import PAGES, ROOT, commands_of

from mps_sdpa import cli
from mps_sdpa.demo import model, train
from mps_sdpa.environment import environment

_INLINE = re.compile(r"`((?:mps-sdpa|make) [a-z][^`]*)`")
_EXAMPLE = re.compile(r"^\s*(mps-sdpa .*)$", re.MULTILINE)

#: Beginnings of commands that are not run here, and why.
EXCEPTIONS = {
    "make test": "it is what runs this test",
    "make test-python": "it is what runs this test",
    "make test-arm": "make test runs it",
    "make lint": "it installs tools of its own",
    "make asan": "CI runs it after make test; it builds everything once more",
    "make tsan": "it builds everything once more",
    "make macos": "make test runs it after this test",
    "make bench-peers": "it downloads the peers into an environment of their own",
    "make bench-cpp": "it needs Google Benchmark and a build of its own",
    "make bench-mps": "it needs a Mac",
    "pip install": "make install does it, in an environment with the build tools",
    "cmake --workflow": "make test runs its steps",
    "ctest": "make test runs it",
    "mps-sdpa self-test --device mps": "it needs a Mac",
}

#: Appended to a command of ours; of a flag given twice the last one counts.
_SHORTER = {
    "benchmark": ["--limit", "1", "--pairs", "3", "--device", "cpu"],
    "correctness": ["--limit", "1", "--device", "cpu"],
    "demo": ["--steps", "1", "--device", "cpu"],
}
_SHORTER_ARGUMENTS = {
    "bench": "--limit 1 --pairs 3 --pass forward --threads 1",
    "demo": "--help",  # its model is not tiny; `mps-sdpa demo` is run
}


def _help_examples() -> list[str]:
    context = click.Context(cli.group)
    found = []
    for name in cli.group.list_commands(context):
        command = cli.group.get_command(context, name)
        assert command is not None
        found += _EXAMPLE.findall(command.epilog or "")
    return found


def every_command() -> list[str]:
    """Each once, in the order in which a reader meets them."""
    found = []
    for page in PAGES:
        found += [shlex.join(words) for words in commands_of(page)]
        found += _INLINE.findall(page.read_text(encoding="utf-8"))
    found += _help_examples()
    return list(dict.fromkeys(found))


def reason_not_to_run(command: str) -> str | None:
    words = command.split()
    for beginning, reason in EXCEPTIONS.items():
        known = beginning.split()
        if words[: len(known)] == known:
            return reason
    return None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user may stand: with a program, a module, a text and two results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPS_SDPA_CACHE_DIR", str(tmp_path))
    environment.cache_clear()
    (tmp_path / "README.md").write_text("A text to learn. " * 100)
    for program in ("script.py", "train.py"):
        (tmp_path / program).write_text("import sys\nprint(sys.argv)\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/train.py").write_text("import sys\nprint(sys.argv)\n")
    tiny = model.Size(layers=1, heads=2, dim=32, context=64)
    monkeypatch.setattr(train.Recipe, "__init__", recipe_of(tiny))
    return tmp_path


def run_ours(words: list[str], folder: Path) -> int:
    """The exit code of `mps-sdpa WORDS`."""
    if words[0] == "report":
        _make_results([folder / word for word in words if word.endswith(".json")])
    if words[0] == "run":  # it takes over the process
        program = ["-m", "mps_sdpa", *words]
        return subprocess.run([sys.executable, *program], cwd=folder, check=False).returncode
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, *_SHORTER.get(words[0], [])])
    return int(ended.value.code or 0)


def _make_results(paths: list[Path]) -> None:
    for path in paths:
        words = ["benchmark", "--suite", "short", *_SHORTER["benchmark"], "--out", str(path)]
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert not ended.value.code


def run_make(words: list[str], folder: Path) -> int:
    """The exit code of `make WORDS`, without building anything again."""
    target = words[0]
    given = next((word[5:] for word in words if word.startswith("ARGS=")), "")
    more = _SHORTER_ARGUMENTS.get(target, "")
    if target == "bench":
        more += f" --out {folder}"
    arguments = [f"ARGS={given} {more}", "--old-file=.venv/package"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", target, *arguments], cwd=ROOT, env=own, check=False).returncode


@pytest.mark.parametrize("command", every_command())
def test_command_runs(command: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if reason := reason_not_to_run(command):
        pytest.skip(f"{command}: {reason}")
    program, *words = shlex.split(command)
    if program == "make" and not (ROOT / ".venv/package").exists():
        pytest.skip(f"{command}: there is no .venv of make install")
    threads = torch.get_num_threads()
    try:
        run = {"make": run_make, "mps-sdpa": run_ours}[program]
        assert run(words, folder) == 0, capfd.readouterr().err
    finally:
        torch.set_num_threads(threads)


def test_exceptions_are_needed() -> None:
    commands = every_command()
    unused = [
        beginning
        for beginning in EXCEPTIONS
        if not any(
            command.split()[: len(beginning.split())] == beginning.split() for command in commands
        )
    ]
    assert not unused
