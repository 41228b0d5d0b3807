# SPDX-License-Identifier: MIT
"""Packs the cross-built module as a wheel: macos_wheel.py BUILD_FOLDER.

The build back end names wheels after the machine it runs on, so the tag is written here. The module
has the stable ABI where the Python that built it has the headers of 3.12 or newer; else the wheel
is for that Python's version.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import tempfile
import zipfile
from pathlib import Path

from scikit_build_core.build import prepare_metadata_for_build_wheel

_PLATFORM = "macosx_14_0_arm64"
_SOURCES = ("*.py", "*.pyi", "py.typed")


def module(build: Path) -> tuple[Path, str, str]:
    """The built module, its name on a Mac, and the wheel's tag."""
    (built,) = (build / "python").glob("_core.*so")
    if built.name.endswith(".abi3.so"):
        return built, built.name, f"cp312-abi3-{_PLATFORM}"
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    return built, f"_core.cpython-{version}-darwin.so", f"cp{version}-cp{version}-{_PLATFORM}"


def metadata(tag: str) -> tuple[str, dict[str, bytes]]:
    """The folder of the wheel's metadata, and its files."""
    with tempfile.TemporaryDirectory() as folder:
        name = prepare_metadata_for_build_wheel(folder)
        files = {
            f"{name}/{path.relative_to(Path(folder) / name)}": path.read_bytes()
            for path in (Path(folder) / name).rglob("*")
            if path.is_file() and path.name != "RECORD"
        }
    wheel = f"{name}/WHEEL"
    text = re.sub(r"Tag: .*\n?", "", files[wheel].decode()).rstrip()
    files[wheel] = f"{text}\nTag: {tag}\n".encode()
    return name, files


def record_line(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


def main() -> None:
    build, package = Path(sys.argv[1]), Path("python/mps_sdpa")
    built, name_on_mac, tag = module(build)
    info, files = metadata(tag)
    for pattern in _SOURCES:
        for path in sorted(package.rglob(pattern)):
            files[f"mps_sdpa/{path.relative_to(package)}"] = path.read_bytes()
    files[f"mps_sdpa/{name_on_mac}"] = built.read_bytes()
    record = "".join(record_line(name, content) for name, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    for old in build.glob("*.whl"):
        old.unlink()
    wheel = build / f"{info.removesuffix('.dist-info')}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    print(wheel)


main()
