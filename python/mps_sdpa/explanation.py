# SPDX-License-Identifier: MIT
"""Why a call runs where it runs."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from mps_sdpa import _core, devices, launchers
from mps_sdpa.arguments import attention_settings, check_tensors
from mps_sdpa.backends import NAMES, reason_against
from mps_sdpa.calibration import known_about, take_up
from mps_sdpa.engine import options_for
from mps_sdpa.settings import Settings

__all__ = ["HOW_TO_CHANGE", "explain", "explain_on_chip"]

HOW_TO_CHANGE = "backend=NAME, set_default_backend(NAME) or MPS_SDPA_BACKEND=NAME"

#: The line of a plan that begins a launch.
_KERNEL = re.compile(r"^(\S+): grid ", re.MULTILINE)


def _text(found: dict[str, Any]) -> str:
    lines = [
        f"problem   {found['problem']} ({found['pass']})",
        f"back end  {found['backend']}: {found['why']}",
        f"plan      {found['plan']}" if found["plan"] else "",
        f"knows     {found['calibration']}",
        *(f"not {name}: {reason}" for name, reason in found["rejected"].items()),
        f"change    {HOW_TO_CHANGE}",
    ]
    return "\n".join(line for line in lines if line)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool | str = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    backend: str = "auto",
    training: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Prints and returns the choice for a call of `attention`: back end, plan, why, and why not.

    The dictionary has `problem`, `pass`, `backend`, `why`, `plan`, `calibration` and
    `rejected` {name: reason}.
    With `training` it is about the backward pass. `quiet` only returns.
    """
    settings = attention_settings(causal, window, softcap, dropout, scale, 0, backend)
    check_tensors(q, k, v, mask)
    pass_ = "backward" if training else "forward"
    kind = devices.kind(q)
    take_up(kind)
    options = options_for(settings, measured_on=kind)
    problem, plan, choice = launchers.explain(q, k, v, mask, sinks, options, pass_)
    against = dict(choice.rejected)
    reasons = {name: against.get(name) or reason_against(name) for name in NAMES}
    rejected = {name: why for name, why in reasons.items() if why}
    found = {
        "problem": problem,
        "pass": pass_,
        "backend": choice.backend or "stock",
        "why": choice.why,
        "plan": plan,
        "calibration": known_about(
            kind,
            "train" if training else "forward",
            str(q.dtype).removeprefix("torch."),
            q.size(-1),
        ),
        "rejected": rejected,
    }
    if not quiet:
        print(_text(found))
    return found


def explain_on_chip(
    chip: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, settings: Settings, pass_: str
) -> dict[str, Any]:
    """What the Metal back end would do on an Apple chip, which need not be here: the choice, the
    launches, an estimate of their time, and the source of each kernel under `source`. The tensors
    lend their shapes only."""
    options = _core.Options(
        scale=settings.scale,
        causal=int(settings.causal),
        window=settings.window,
        softcap=settings.softcap,
        dropout=settings.dropout,
        backend=settings.backend,
    )
    launcher = _core.MetalLauncher(_core.metal_chip(chip))
    inputs = (q, k, v, mask, None)
    problem, plan, choice = _core.metal_explain(inputs, options, pass_, launcher)
    return {
        "problem": problem,
        "pass": pass_,
        "backend": choice.backend or "stock",
        "why": choice.why,
        "plan": plan,
        "calibration": f"None: a plan for an {chip}, made without one.",
        "rejected": dict(choice.rejected),
        "chip": chip,
        "estimate": _core.metal_estimate(inputs, options, pass_, chip) if plan else "",
        "source": {kernel: _core.metal_source(kernel) for kernel in _KERNEL.findall(plan)},
    }
