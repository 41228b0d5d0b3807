# SPDX-License-Identifier: MIT
"""Runs attention kernels that others wrote, unchanged but for rewrite.py, in the simulator.

They are known to be right on Apple's hardware; if they were wrong here, the simulator would be.

usage: third_party_test.py mlx|torch BUILD_FOLDER PROGRAM...
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fetch_wheel import MLX, unpacked
from lint import lint
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
    if project == "torch":
        return torch_headers()
    return unpacked(MLX, MLX_PREFIX, build / "wheels")


def lint_complaints(source: Path, files: list[str]) -> list[str]:
    """Apple's compiler accepts MLX's kernels, so the lint has nothing to say about them.

    But for literals without f, which it reports because C++ reads them otherwise.
    """
    complaints = lint({name: (source / name).read_text() for name in files})
    return [str(c) for c in complaints if "literal without f" not in c.text]


def main() -> int:
    project, build, programs = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    source = headers(project, build)
    if source is None:
        return 0
    copied = copy_rewritten(source, build / "third_party" / project, FILES[project])
    print(f"{project}: {len(copied)} files rewritten")
    if project == "mlx" and (complaints := lint_complaints(source, copied)):
        print("\n".join(complaints))
        return 1
    targets = [Path(program).name for program in programs]
    subprocess.run(["cmake", "--build", str(build), "--target", *targets], check=True)
    return max(subprocess.run([program, "--gtest_brief=1"]).returncode for program in programs)


if __name__ == "__main__":
    sys.exit(main())
