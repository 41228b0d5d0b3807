# SPDX-License-Identifier: MIT
"""The MPSGraph back ends: without Apple's frameworks, and in a process of its own on a fake Mac."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mps_sdpa import graphs

HERE = Path(__file__).parent
FAKE = HERE.parents[1] / "build/dev/tests/torch_mps/fake_mac"


@pytest.mark.skipif(sys.platform == "darwin", reason="about machines without Apple's frameworks")
@pytest.mark.parametrize("name", graphs.NAMES)
def test_elsewhere_they_say_why_not(name: str) -> None:
    assert graphs.reason_against(name) == "There is no Objective-C runtime on this system."


def test_a_torch_without_the_stream_says_so() -> None:
    addresses, reason = graphs.find_stream()
    assert (addresses is None) == (reason is not None)


def components(symbol: str) -> list[str]:
    """`["at", "mps", "getCurrentMPSStream"]` of the C++ symbol for it; it takes no arguments."""
    names, rest = [], symbol.removeprefix("_ZN").removesuffix("Ev")
    while size := re.match(r"\d+", rest):
        start = size.end()
        names.append(rest[start : start + int(size[0])])
        rest = rest[start + int(size[0]) :]
    assert rest == "" and symbol == f"_ZN{''.join(f'{len(n)}{n}' for n in names)}Ev"
    return names


@pytest.mark.parametrize("symbol", graphs._SYMBOLS)
def test_torch_s_headers_declare_what_is_looked_up(symbol: str) -> None:
    """In the namespace and class, without arguments, exported; static and virtual ones would be
    called otherwise."""
    *spaces, name = components(symbol)
    header = "ATen/mps/MPSStream.h" if spaces[0] == "at" else "torch/csrc/api/include/torch/mps.h"
    text = (Path(torch.__file__).parent / "include" / header).read_text()
    result = {
        "getCurrentMPSStream": "TORCH_API MPSStream*",
        "commandBuffer": "MPSCommandBuffer_t",
        "endKernelCoalescing": "void",
        "get_dispatch_queue": "DispatchQueue_t TORCH_API",
    }[name]
    assert re.search(rf"^ *{re.escape(result)} {name}\(\);$", text, re.MULTILINE)
    assert f"namespace {'::'.join(spaces[:2])} {{" in text
    if len(spaces) > 2:
        assert f"class TORCH_API {spaces[2]} {{" in text


def library(names: tuple[str, ...]) -> SimpleNamespace:
    """A library that exports those."""
    return SimpleNamespace(**{name: ctypes.CFUNCTYPE(None)(lambda: None) for name in names})


@pytest.mark.parametrize("missing", [*graphs._SYMBOLS, "dispatch_sync_f", None])
def test_each_missing_symbol_is_named(missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = library(tuple(name for name in graphs._SYMBOLS if name != missing))
    system = library(() if missing == "dispatch_sync_f" else ("dispatch_sync_f",))
    monkeypatch.setattr(graphs, "_libraries", lambda: [library(()), exported])
    monkeypatch.setattr(graphs.ctypes, "CDLL", lambda path: system)
    addresses, reason = graphs.find_stream.__wrapped__()
    if missing is None:
        assert reason is None
        assert len(set(addresses)) == 5
    else:
        assert addresses is None
        assert missing in reason


@pytest.mark.skipif(not FAKE.exists(), reason="the fake Mac is for x86-64; it was not built here")
@pytest.mark.parametrize("file", ["on_fake_mac.py", "original_on_fake_mac.py"])
def test_on_a_fake_mac(file: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    done = subprocess.run([*command, str(HERE / file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    print(done.stdout[-200:])
