# SPDX-License-Identifier: MIT
"""A case as a call: through us, or through torch's own function where it can express the case."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

import mps_sdpa
from mps_sdpa.harness.cases import Case
from mps_sdpa.harness.data import Inputs
from mps_sdpa.stock import original as stock_function

Forward = Callable[[], torch.Tensor]

# Which overload it is depends on a flag that is known at run time only.
_attention: Callable[..., Any] = mps_sdpa.attention


def options(case: Case, *, seed: int = 0) -> dict[str, Any]:
    """The keyword arguments of `attention` for a case."""
    causal = {"none": False, "upper_left": True, "lower_right": "lower_right"}[case.causal]
    return {
        "causal": causal,
        "window": None if case.window == (-1, -1) else case.window,
        "softcap": case.softcap,
        "dropout": case.dropout,
        "scale": case.scale,
        "seed": seed if case.dropout > 0 else None,
    }


def attention(
    case: Case, inputs: Inputs, backend: str, *, seed: int = 0, with_lse: bool = False
) -> Any:
    """Our result for a case, with its log-sum-exp if asked for."""
    return _attention(
        inputs.query,
        inputs.key,
        inputs.value,
        mask=inputs.mask,
        sinks=inputs.sinks,
        **options(case, seed=seed),
        return_lse=with_lse,
        backend=backend,
    )


def forward_call(case: Case, inputs: Inputs, backend: str) -> Forward:
    """What to time: the function that a user of torch would call, torch's own or our drop-in; what
    torch's cannot express goes through `attention`."""
    if not expressible(case) or (backend != "stock" and _is_positional(case)):
        return lambda: attention(case, inputs, backend)
    mask = stock_mask(case, inputs) if backend == "stock" else inputs.mask
    is_causal = case.causal == "upper_left" and (backend != "stock" or mask is None)
    function = (
        stock_function
        if backend == "stock"
        else functools.partial(mps_sdpa.sdpa_opt, backend=backend)
    )
    return functools.partial(
        function,
        inputs.query,
        inputs.key,
        inputs.value,
        attn_mask=mask,
        dropout_p=case.dropout,
        is_causal=is_causal,
        scale=case.scale,
        enable_gqa=case.q_heads != case.kv_heads,
    )


def _is_positional(case: Case) -> bool:
    """Whether it needs a window or the lower-right diagonal, for which torch has no option."""
    single = case.q_len == 1 and case.causal == "lower_right"
    return (case.causal == "lower_right" and not single) or case.window != (-1, -1)


def expressible(case: Case) -> bool:
    """Whether torch's function can compute the case at all: it has no soft cap and no sinks."""
    return case.softcap == 0 and not case.sinks


def stock_mask(case: Case, inputs: Inputs) -> torch.Tensor | None:
    """The mask a user of torch must build: windows and lower-right causality become one."""
    mask = inputs.mask
    if mask is not None and mask.is_floating_point():
        mask = mask.to(case.torch_dtype)  # torch refuses another dtype
    if not _is_positional(case) and (case.causal != "upper_left" or mask is None):
        return mask
    first, last = (torch.from_numpy(bound)[:, None] for bound in case.key_ranges())
    keys = torch.arange(case.kv_len)
    visible = ((keys >= first) & (keys < last)).to(inputs.query.device)
    if mask is None:
        return visible
    return mask & visible if mask.dtype is torch.bool else mask.masked_fill(~visible, -torch.inf)


def train_call(forward: Forward, inputs: Inputs) -> Callable[[], None]:
    """Forward and backward for the gradients of everything that has one."""
    leaves = list(inputs.leaves().values())

    def step() -> None:
        torch.autograd.grad(forward(), leaves, inputs.grad_out)

    return step


def backward_call(forward: Forward, inputs: Inputs) -> Callable[[], None]:
    """The backward pass alone, for query, key and value; the graph of one forward pass is kept."""
    out, leaves = forward(), [inputs.query, inputs.key, inputs.value]

    def step() -> None:
        torch.autograd.grad(out, leaves, inputs.grad_out, retain_graph=True)

    return step


def refusal(case: Case, inputs: Inputs, backend: str, *, gradients: bool) -> str | None:
    """Why a back end that was named cannot run the case; None if it can."""
    if backend == "stock":
        return "torch draws other random numbers for dropout" if case.dropout > 0 else None
    if backend == "auto":
        return None
    known = {name: value for name, value in options(case).items() if name != "seed"}
    for training in (False, True) if gradients else (False,):
        found = mps_sdpa.explain(
            inputs.query,
            inputs.key,
            inputs.value,
            mask=inputs.mask,
            sinks=inputs.sinks,
            backend=backend,
            training=training,
            quiet=True,
            **known,
        )
        if found["backend"] != backend:
            return str(found["rejected"].get(backend, found["why"]))
    return None
