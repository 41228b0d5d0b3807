# SPDX-License-Identifier: MIT
"""Why a call runs where it runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mps_sdpa import devices, launchers
from mps_sdpa.arguments import attention_settings, check_tensors
from mps_sdpa.backends import NAMES, reason_against
from mps_sdpa.calibration import calibration_summary
from mps_sdpa.engine import options_for

__all__ = ["explain"]


def _text(found: dict[str, Any]) -> str:
    lines = [
        f"problem   {found['problem']} ({found['pass']})",
        f"back end  {found['backend']}: {found['why']}",
        f"plan      {found['plan']}" if found["plan"] else "",
        f"knows     {found['calibration']}",
        *(f"not {name}: {reason}" for name, reason in found["rejected"].items()),
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
    options = options_for(settings)
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
        "calibration": calibration_summary(devices.kind(q)),
        "rejected": rejected,
    }
    if not quiet:
        print(_text(found))
    return found
