# SPDX-License-Identifier: MIT
"""The Python examples run and say what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_jax() -> None:
    assert _run("jax_attention.py").count("largest difference from the textbook") == 3


def test_fine_tuning(tmp_path: Path) -> None:
    plot = tmp_path / "losses.svg"
    said = _run("finetune.py", "--steps", "3", "--plot", str(plot))
    assert "largest difference of the losses at a step" in said
    assert plot.read_text().startswith("<?xml")
