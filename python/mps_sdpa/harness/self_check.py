# SPDX-License-Identifier: MIT
"""A quick check that an installation works: one small problem a dtype, and one timing."""

from __future__ import annotations

import time
from typing import Any

import torch

import mps_sdpa
from mps_sdpa import _core, calibration
from mps_sdpa.harness import calls
from mps_sdpa.harness.cases import SHORT_NAMES, Case
from mps_sdpa.harness.correctness import check
from mps_sdpa.harness.data import make_inputs
from mps_sdpa.harness.environment import describe_machine
from mps_sdpa.harness.errors import tolerance
from mps_sdpa.harness.peaks import synchronizer
from mps_sdpa.harness.timing import paired

_BUDGET_SECONDS = 0.2


def run(device: str) -> dict[str, Any]:
    """Everything that `self-test` prints."""
    start = time.perf_counter()
    calibration.use_cached(device)  # an answer under a second leaves no time to measure
    checks = {
        SHORT_NAMES[name]: _check(name, device) for name in ("float32", "float16", "bfloat16")
    }
    passed = all(found["pass"] for found in checks.values())
    return {
        "env": {**describe_machine(), "device": device},
        "available_backends": mps_sdpa.available_backends(),
        "unavailable": mps_sdpa.backend_status(device=device)["unavailable"],
        "gpu": gpu(),
        "messages": messages(),
        "correctness": checks,
        "benchmark": _time(device),
        "status": "pass" if passed else "fail",
        "elapsed_s": time.perf_counter() - start,
    }


def gpu() -> dict[str, Any] | None:
    """The Apple GPU as plans see it; None where there is none."""
    device, _ = _core.metal_device()
    if device is None:
        return None
    return {"name": device.name, "family": device.family, "cores": device.cores}


def messages() -> dict[str, Any]:
    """How a Mac's own methods differ from the messages that the library declares."""
    reason, macos, declared, differences = _core.apple_messages()
    if reason:
        return {"not_compared": reason}
    return {"macos": macos, "declared": declared, "differences": differences}


def _case(dtype: str, heads: int, length: int) -> Case:
    return Case(
        name="self-test",
        suite="self-test",
        dtype=dtype,
        batch=1,
        q_heads=heads,
        kv_heads=heads // 2,
        q_len=length,
        kv_len=length,
        qk_dim=64,
        v_dim=64,
        causal="upper_left",
    )


def _check(dtype: str, device: str) -> dict[str, Any]:
    """A causal problem with grouped heads and lengths that no tile divides."""
    case = _case(dtype, heads=4, length=131)
    outcome = check(case, "auto", device=device)
    errors = {found["tensor"]: found["max_abs_err"] for found in outcome.tensors}
    gradients = [error for name, error in errors.items() if name.startswith("grad_")]
    return {
        "max_abs_diff": errors.get("out"),
        "max_abs_diff_gradients": max(gradients, default=None),
        "tol": tolerance(case.torch_dtype).absolute,
        "pass": outcome.passed,
        "error": outcome.error,
    }


def _time(device: str) -> dict[str, Any]:
    case = _case("float32", heads=8, length=512)
    inputs = make_inputs(case, device=device)
    ours, stock = (calls.forward_call(case, inputs, name) for name in ("auto", "stock"))
    with torch.no_grad():
        timed = paired(ours, stock, budget=_BUDGET_SECONDS, synchronize=synchronizer(device))
    chosen = mps_sdpa.explain(inputs.query, inputs.key, inputs.value, causal=True, quiet=True)
    return {
        "shape": f"fp32 B1 H{case.q_heads}/{case.kv_heads} L{case.q_len} D{case.qk_dim} causal",
        "stock_ms": float(torch.tensor(timed.baseline).median()) * 1e3,
        "auto_backend": chosen["backend"],
        "auto_ms": float(torch.tensor(timed.candidate).median()) * 1e3,
        "speedup_auto_vs_stock": timed.speedup().value,
    }
