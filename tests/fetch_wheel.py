# SPDX-License-Identifier: MIT
"""Fetches a wheel of another project at test time and unpacks a part of it.

Headers and kernels that others wrote are evidence that ours agree with theirs. They are never part
of this repository, so a test that needs them asks for them here, and says so loudly where they
cannot be had.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MLX = ("mlx-metal==0.32.4", "macosx_14_0_arm64")
PYOBJC_SHADERS = ("pyobjc-framework-metalperformanceshaders==12.2.2", "macosx_11_0_universal2")
PYOBJC_GRAPH = ("pyobjc-framework-metalperformanceshadersgraph==12.2.2", "macosx_11_0_universal2")
TENSORFLOW_METAL = ("tensorflow-metal==1.2.0", "macosx_12_0_arm64")


def download(requirement: str, platform: str, folder: Path) -> Path:
    """Downloads one wheel by pip, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", platform, "--python-version", "3.11"]
    command += ["--dest", str(folder), requirement]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return next(folder.glob("*.whl"))


def unpacked(wheel: tuple[str, str], prefix: str, cache: Path) -> Path | None:
    """The folder with the wheel's files under `prefix`, kept in `cache`; None with a loud line."""
    target = cache / wheel[0].replace("==", "-")
    if (target / prefix).is_dir():
        return target / prefix
    try:
        with tempfile.TemporaryDirectory() as folder:
            archive = zipfile.ZipFile(download(*wheel, Path(folder)))
            members = [name for name in archive.namelist() if name.startswith(prefix)]
            archive.extractall(target, members)
    except (subprocess.SubprocessError, OSError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        print(f"!!! NOT CHECKED: {wheel[0]} could not be fetched: {detail.strip()[-200:]}")
        return None
    return target / prefix
