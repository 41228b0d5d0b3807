# SPDX-License-Identifier: MIT
"""The documents are true: their Python runs, their commands exist, their links lead somewhere.

Python blocks of a page run in order in one namespace. Here commands are held against what exists:
`make` targets and presets by name, flags of `mps-sdpa` by its own parser; test_commands runs them.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path

import click
import pytest

import mps_sdpa
from mps_sdpa.cli import group
from mps_sdpa.environment import VARIABLES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LANGUAGES = {"", "python", "sh", "bash", "text", "cpp", "json"}
PROGRAMS = ("make", "mps-sdpa", "cmake", "ctest", "pip", "python", ".ci/run")
NEEDS_DOWNLOAD = ("from_pretrained",)  # test_transformers runs such models with random weights

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)")


def _blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in _FENCE.findall(page.read_text()) if found == language]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands_of(page: Path) -> list[list[str]]:
    """What is typed in a shell; in blocks of no language only what begins with one of PROGRAMS."""
    shell = "".join(_blocks(page, "sh") + _blocks(page, "bash")).splitlines()
    other = "".join(_blocks(page, "") + _blocks(page, "text")).splitlines()
    lines = shell + [line for line in other if line.split(" ")[0] in PROGRAMS]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_runs(page: Path) -> None:
    space: dict[str, object] = {}
    try:
        for text in _blocks(page, "python"):
            code = compile(text, str(page), "exec")
            if not any(word in text for word in NEEDS_DOWNLOAD):
                exec(code, space)
    finally:
        mps_sdpa.integrations.diffusers.unregister()
        mps_sdpa.disable()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_the_languages_of_blocks_are_known(page: Path) -> None:
    assert {language for language, _ in _FENCE.findall(page.read_text())} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), f"{path} is not there"
        assert not anchor or anchor in _anchors(target), f"{path} has no title {anchor}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands_of(page):
        _check(words)
    capsys.readouterr()


def _check(words: list[str]) -> None:
    program, *arguments = words
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), words
    elif program == "mps-sdpa":
        _check_ours(*arguments)
    elif program in ("cmake", "ctest"):
        _check_preset(words)
    else:
        assert program in PROGRAMS, f"{program} is not a command we know"


def _check_ours(name: str, *arguments: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None, f"mps-sdpa has no command {name}"
    if "mps" not in arguments:  # a device that is not here is a mistake
        command.make_context(name, list(arguments))


def _check_preset(words: list[str]) -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    known = {each["name"] for each in presets["configurePresets"]}
    for flag, value in itertools.pairwise(words):
        assert flag != "--preset" or value in known, words


def test_the_table_of_variables_is_whole() -> None:
    table = (ROOT / "docs/environment.md").read_text()
    assert set(re.findall(r"^\| `(MPS_SDPA_\w+)`", table, re.MULTILINE)) == set(VARIABLES)


def test_pages_are_short() -> None:
    for page in PAGES:
        assert len(page.read_text().splitlines()) <= 120, (
            f"{_name(page)} is longer than two screens"
        )
