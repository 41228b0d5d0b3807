# SPDX-License-Identifier: MIT
"""Kernels of MLX and torch: fetched, rewritten by rewrite.py, and compiled for the simulator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fetch_wheel import MLX, unpacked
from rewrite import copy_rewritten

MLX_PREFIX = "mlx/include/"
MLX_KERNELS = "mlx/backend/metal/kernels/"
FILES = {
    "mlx": [
        MLX_KERNELS + "sdpa_vector.h",
        MLX_KERNELS + "steel/attn/kernels/steel_attention.h",
    ],
    "torch": [
        "ATen/native/mps/kernels/DecodeAttention.h",
        "ATen/native/mps/kernels/PrefillAttention.h",
    ],
}


def torch_headers() -> Path | None:
    """The include folder of the torch that is installed beside some Python on the path."""
    ask = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
    on_path = (shutil.which("python", path=folder) for folder in os.get_exec_path())
    for python in (sys.executable, *filter(None, on_path)):
        origin = subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.strip()
        headers = Path(origin).parent / "include"
        if origin and (headers / FILES["torch"][0]).is_file():
            return headers
    print("!!! NOT CHECKED: no torch with Metal kernels in its headers is installed")
    return None


def headers(project: str, build: Path) -> Path | None:
    """Where a project's headers are; None with a loud line if they cannot be had."""
    if project == "torch":
        return torch_headers()
    return unpacked(MLX, MLX_PREFIX, build / "wheels")


def copy_kernels(project: str, source: Path, build: Path) -> list[str]:
    """Rewrites a project's kernels to where third_party.cmake expects them; their paths."""
    return copy_rewritten(source, build / "third_party" / project, FILES[project])


def build_targets(build: Path, targets: list[str]) -> None:
    subprocess.run(["cmake", "--build", str(build), "--target", *targets], check=True)
