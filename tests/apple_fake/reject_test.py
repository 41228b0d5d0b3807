# SPDX-License-Identifier: MIT
"""Checks that the mistakes in reject.cpp do not compile. usage: reject_test.py COMPILER ROOT"""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).with_name("reject.cpp")


def compiles(compiler: str, root: str, case: int) -> tuple[bool, str]:
    command = [compiler, "-std=c++20", "-fsyntax-only", f"-I{root}", f"-DCASE={case}", str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stderr


def main(compiler: str, root: str) -> int:
    found = re.findall(r"CASE == (\d+)  // expect: (.+)", SOURCE.read_text())
    cases = {0: "", **{int(case): words for case, words in found}}
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda case: compiles(compiler, root, case), cases)
        results = dict(zip(cases, done, strict=True))
    failures = 0
    for case, words in cases.items():
        accepted, said = results[case]
        good = accepted if case == 0 else not accepted and words in said
        failures += not good
        what = words or "all right lines compile"
        print(f"{'ok    ' if good else 'FAILED'} case {case}: {what}")
        if not good:
            print(said[:2000])
    return failures


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
