# SPDX-License-Identifier: MIT
"""Builds and runs the Metal kernels on an NVIDIA GPU, and writes a result file.

usage: run.py LIBRARY_FOLDER OUTPUT_FOLDER [RESULT_FILE]

LIBRARY_FOLDER holds libsdpa.a, libsdpa_cases.a and libmetal_sim.so. Needs nvcc, a GPU and
compute-sanitizer.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = ROOT / "sdpa" / "metal" / "kernels"
BUILDS = {"plain": [], "checked": ["-DMSL_CHECK"], "mutants": ["-DMSL_CHECK", "-DSDPA_MUTANTS"]}
NVCC = ["nvcc", "-std=c++20", "-O2", "-lineinfo", "--expt-relaxed-constexpr", "-w"]
SUMMARY = re.compile(r"(?:RACECHECK|ERROR) SUMMARY: (\d+) ")


def includes(name: str, output: Path) -> list[str]:
    mutated = [f"-I{output / 'mutated'}"] if name == "mutants" else []
    return [*mutated, f"-I{ROOT}", f"-I{ROOT / 'tests' / 'metal_sim'}"]


def build(name: str, libraries: Path, output: Path) -> str:
    """Compiles one of the programs; returns the compiler's complaints."""
    definitions, folders = BUILDS[name], includes(name, output)
    source, program = str(HERE / "cuda_kernels.cu"), str(output / name)
    metal = HERE.parent / "metal_kernels"
    arch = os.environ.get("SDPA_CUDA_ARCH", "native")
    commands = [
        [*NVCC, f"-arch={arch}", *definitions, *folders, "-c", source, "-o", program + "_k.o"],
        ["c++", "-std=c++20", "-O2", *definitions, *folders, "-c", str(HERE / "cuda_test.cpp"),
         "-o", program + "_t.o"],
        [*NVCC, f"-I{ROOT}", f"-I{ROOT / 'tests' / 'metal_sim'}", str(metal / "spec_values.cpp"),
         str(metal / "simulated_metal.cpp"), program + "_t.o", program + "_k.o",
         str(libraries / "libsdpa_cases.a"), str(libraries / "libsdpa.a"),
         str(libraries / "libmetal_sim.so"), "-lgomp", "-ldl", "-Xlinker", f"-rpath={libraries}",
         "-o", program],
    ]  # fmt: skip
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
    return ""


def run(label: str, command: list[str]) -> dict[str, object]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        text, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired:
        text, code = "timed out", 124
    lines = [line for line in text.splitlines() if line.strip()]
    summary = SUMMARY.search(text)
    hazards = int(summary[1]) if summary else None
    return {"what": label, "exit": code, "hazards": hazards, "lines": lines[-40:]}


def jobs(output: Path, mutants: int) -> list[tuple[str, list[str]]]:
    plain, checked, mutated = (str(output / name) for name in BUILDS)
    sanitizer = ["compute-sanitizer", "--print-limit", "5", "--tool"]
    made = [
        ("large", [plain, "large"]),
        ("conformance", [plain, "conformance"]),
        ("conformance, checked build", [checked, "conformance", "3"]),
        ("conformance, build with mutants, no mistake", [mutated, "conformance", "3", "float"]),
    ]
    made += [
        (tool, [*sanitizer, tool, checked, "conformance", "97"])
        for tool in ("memcheck", "racecheck")
    ]
    made += [(f"mutant {n}", [mutated, "mutant", str(n)]) for n in range(1, mutants + 1)]
    race = [*sanitizer, "racecheck", mutated, "mutant"]
    made += [  # the barriers come first in the list
        (f"mutant {n} under racecheck", [*race, str(n)]) for n in range(1, 7)
    ]
    return made


def verdict(result: dict[str, object]) -> bool:
    """Whether a job came out as it must.

    A mistake may go unnoticed here: a read past a buffer's end or two stores of one value change no
    result. The simulator notices those; what a run on a GPU must find is every missing barrier.
    """
    what, hazards = str(result["what"]), result["hazards"]
    if "under racecheck" in what:
        return bool(hazards)
    if what.startswith("mutant"):
        return result["exit"] in (0, 1)
    if what in ("memcheck", "racecheck"):
        return result["exit"] == 0 and hazards == 0
    return result["exit"] == 0


def is_noticed(result: dict[str, object]) -> bool:
    return not any("NOT NOTICED" in str(line) for line in result["lines"])


def main() -> int:
    libraries, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    output.mkdir(parents=True, exist_ok=True)
    mutate = HERE.parent / "metal_kernels" / "mutants" / "mutate.py"
    subprocess.run([sys.executable, str(mutate), str(KERNELS), str(output / "mutated")], check=True)
    mutants = len((output / "mutated" / "mutant_names.inc").read_text().splitlines())
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        for complaint in pool.map(lambda name: build(name, libraries, output), BUILDS):
            if complaint:
                print(complaint)
                return 1
        results = list(pool.map(lambda job: run(*job), jobs(output, mutants)))
    for result in results:
        result["passed"] = verdict(result)
        if not result["passed"] or not str(result["what"]).startswith("mutant"):
            print(result["what"], "passed" if result["passed"] else "FAILED", result["hazards"])
            print("\n".join(f"    {line}" for line in result["lines"][-30:]))
    failed = [r["what"] for r in results if not r["passed"]]
    unnoticed = [r["lines"][-1] for r in results if not is_noticed(r)]
    gpu = subprocess.run([str(output / "plain"), "name"], capture_output=True, text=True).stdout
    record = {
        "gpu": gpu.strip(),
        "date": datetime.date.today().isoformat(),
        "note": "Metal kernels as CUDA; milliseconds say nothing about a Mac",
        "failed": failed,
        "unnoticed_mistakes": unnoticed,
        "results": results,
    }
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(unnoticed))
    print(f"{gpu.strip()}: {len(results) - len(failed)} of {len(results)} jobs passed; {failed}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
