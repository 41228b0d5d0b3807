# SPDX-License-Identifier: MIT
"""Checks with clang that Metal kernels keep their address spaces apart, as Metal does.

Types only: nothing is linked or run. The kernels are instantiated with device, constant and
threadgroup as real address spaces. To show that the check bites, a mix-up is added and must fail.

usage: spaces_test.py MSL_FOLDER BUILD_FOLDER [--instances FILE] [--include FOLDER]... HEADER...
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ZIG = "ziglang==0.17.1"
MISUSE = """
float take(const threadgroup float* p) { return *p; }
float give(const device float* p) { return take(p); }
"""
FLAGS = ["-std=c++20", "-fsyntax-only", "-DMSL_SPACES", "-w"]


def clang_version(compiler: str) -> int:
    shown = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"clang version (\d+)", shown)
    return int(found[1]) if found else 0


def installed_clang() -> list[str] | None:
    """A clang that has _Float16 and __bf16."""
    for name in ("clang++", *(f"clang++-{version}" for version in range(30, 15, -1))):
        compiler = shutil.which(name)
        if compiler and clang_version(compiler) >= 16:
            return [compiler]
    return None


def zig(build: Path) -> list[str] | None:
    """clang out of PyPI's zig, kept in the build folder.

    As itself, with this system's C++ library: zig's own has functions like exp2 in the global
    namespace, beside Metal's.
    """
    found = importlib.util.find_spec("ziglang")
    folder = Path(found.origin).parent if found and found.origin else build / "ziglang/ziglang"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target"]
        done = subprocess.run([*command, folder.parent, ZIG], capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip()[-200:]
            print(f"!!! NOT CHECKED: no clang >= 16, and {ZIG} could not be fetched: {reason}")
            return None
    return [str(folder / "zig"), "clang", "--driver-mode=g++", f"-isystem{folder}/lib/include"]


def errors(compiler: list[str], source: Path, folders: list[Path]) -> str:
    """The compiler's complaints; empty if it accepts the source."""
    includes = [f"-I{folder}" for folder in folders]
    done = subprocess.run(
        [*compiler, *FLAGS, *includes, str(source)], capture_output=True, text=True
    )
    return done.stderr if done.returncode else ""


def write_source(options: argparse.Namespace, folder: Path, compiler: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{Path(options.headers[0]).stem}_spaces.cpp"
    command = [sys.executable, str(HERE / "entries.py"), "--spaces", "--output", str(source)]
    command += ["--preprocessor", " ".join(compiler)]
    if options.instances:
        command += ["--instances", options.instances]
    subprocess.run([*command, *options.headers], check=True)
    return source


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("msl", type=Path)
    parser.add_argument("build", type=Path)
    parser.add_argument("--instances")
    parser.add_argument("--include", action="append", default=[], type=Path)
    parser.add_argument("headers", nargs="+")
    options = parser.parse_args()
    compiler = installed_clang() or zig(options.build)
    if compiler is None:
        return 0
    source = write_source(options, options.build / "spaces", compiler)
    folders = [options.msl, HERE, *options.include]
    complaints = errors(compiler, source, folders)
    if complaints:
        print(complaints[-6000:])
        return 1
    source.write_text(source.read_text() + MISUSE)
    if "take" not in errors(compiler, source, folders):
        print("FAILED: a device pointer was accepted where a threadgroup pointer is wanted")
        return 1
    print(f"{len(options.headers)} headers keep their address spaces apart ({compiler[0]})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
