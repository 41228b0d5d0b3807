# SPDX-License-Identifier: MIT
"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import torch

import mps_sdpa

_SCARCE_BYTES = 2 * 2**30
_BUSY = 0.1  # of all cores
_SHORTEST_WATCH = 0.1  # the system counts the time of processes in steps of 10 ms


def describe_machine() -> dict[str, Any]:
    """Chip, system, versions and threads; the same machine gives the same but for the date."""
    return {
        "chip": chip(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mps_sdpa": mps_sdpa.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def chip() -> str:
    """The processor's name as people know it."""
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return platform.machine()


class Watch:
    """What else this machine did between entering and now."""

    def __enter__(self) -> Watch:
        self._start, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()
        self._least_free = _free_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self.others = self._others()

    def look(self) -> None:
        """At the memory that is free now."""
        self._least_free = min(self._least_free, _free_bytes())

    def _others(self) -> float:
        elapsed = time.monotonic() - self._start
        if elapsed < _SHORTEST_WATCH:
            return 0.0
        busy, own = _busy_seconds() - self._busy, _own_seconds() - self._own
        return max(0.0, (busy - own) / (elapsed * (os.cpu_count() or 1)))

    def notes(self) -> list[str]:
        """What may have disturbed a measurement meanwhile."""
        found = [*memory_notes(self._least_free), *thermal_notes()]
        if self.others > _BUSY:
            found.append(f"other programs used {self.others:.0%} of the CPU")
        return found


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def load_notes() -> list[str]:
    """What may disturb a measurement that starts now."""
    found = [*memory_notes(_free_bytes()), *thermal_notes()]
    cores = os.cpu_count() or 1
    if (load := os.getloadavg()[0]) > 0.5 * cores:
        found.append(f"the load average is {load:.1f} on {cores} cores")
    return found


def _free_bytes() -> int:
    return int(psutil.virtual_memory().available)


def memory_notes(free: int) -> list[str]:
    return [] if free >= _SCARCE_BYTES else [f"only {free / 2**30:.1f} GB of memory is free"]


def thermal_notes() -> list[str]:
    """Whether macOS slows the processor down to cool it; other systems do not say."""
    if platform.system() != "Darwin":
        return []
    try:
        asked = subprocess.run(["pmset", "-g", "therm"], capture_output=True, text=True)
    except OSError:
        return []
    said = asked.stdout
    limits = [int(limit) for limit in re.findall(r"_(?:Speed|Scheduler)_Limit\s*=\s*(\d+)", said)]
    if limits and min(limits) < 100:
        return [f"the processor is held at {min(limits)} % to cool it"]
    return []
