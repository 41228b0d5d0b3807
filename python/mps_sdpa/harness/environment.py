# SPDX-License-Identifier: MIT
"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import torch

import mps_sdpa


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


def load_notes() -> list[str]:
    """What may disturb a measurement that starts now."""
    found = []
    cores = os.cpu_count() or 1
    if (load := os.getloadavg()[0]) > 0.5 * cores:
        found.append(f"the load average is {load:.1f} on {cores} cores")
    free = psutil.virtual_memory().available
    if free < 2 * 2**30:
        found.append(f"only {free / 2**30:.1f} GB of memory is free")
    return found
