# SPDX-License-Identifier: MIT
"""Who runs a call: the compiled module itself for the CPU's tensors, `mps` for an Apple GPU's."""

from __future__ import annotations

from torch import Tensor

from mps_sdpa import _core, devices, mps

__all__ = ["backward", "explain", "forward"]


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    options: _core.Options,
    want_lse: bool,
) -> tuple[Tensor | None, Tensor | None, _core.Choice | None] | None:
    """(out, lse if wanted, Choice if it is not the one asked for); `out` is None where torch's own
    function is to run."""
    if devices.kind(query) == "mps":
        return mps.forward((query, key, value, mask, sinks), options, want_lse)
    return _core.forward(query, key, value, mask, sinks, options, want_lse)


def backward(
    saved: tuple[Tensor | _core.SavedLse | None, ...],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    options: _core.Options,
    wanted: int,
) -> tuple[list[Tensor | None], _core.Choice | None]:
    """The five gradients that the bits of `wanted` name. `saved` is (query, key, value, mask,
    sinks, out, lse)."""
    query = saved[0]
    assert isinstance(query, Tensor)
    if devices.kind(query) == "mps":
        return mps.backward(saved, grad_out, grad_lse, options, wanted)
    return _core.backward(saved, grad_out, grad_lse, options, wanted)


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    options: _core.Options,
    pass_: str,
) -> tuple[str, str, _core.Choice]:
    """The problem, the plan and the choice for a call."""
    kind = devices.kind(query)
    if kind == "mps":
        return mps.explain((query, key, value, mask, sinks), options, pass_)
    return _core.explain(query, key, value, mask, sinks, options, pass_, kind)
