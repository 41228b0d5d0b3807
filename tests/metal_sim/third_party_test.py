# SPDX-License-Identifier: MIT
"""Runs kernels that others wrote, unchanged but for rewrite.py, in the simulator.

They are known to be right on Apple's hardware; if they were wrong here, the simulator would be.

usage: third_party_test.py mlx|torch BUILD_FOLDER PROGRAM...
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lint import lint
from third_party import build_targets, copy_kernels, headers


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
    copied = copy_kernels(project, source, build)
    print(f"{project}: {len(copied)} files rewritten")
    if project == "mlx" and (complaints := lint_complaints(source, copied)):
        print("\n".join(complaints))
        return 1
    build_targets(build, [Path(program).name for program in programs])
    return max(subprocess.run([program, "--gtest_brief=1"]).returncode for program in programs)


if __name__ == "__main__":
    sys.exit(main())
