# SPDX-License-Identifier: MIT
"""The MPSGraph back ends: without Apple's frameworks, and in a process of its own on a fake Mac."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.skipif(not FAKE.exists(), reason="the fake Mac is for x86-64; it was not built here")
def test_on_a_fake_mac() -> None:
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
    done = subprocess.run(
        [*command, str(HERE / "on_fake_mac.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    print(done.stdout[-200:])
