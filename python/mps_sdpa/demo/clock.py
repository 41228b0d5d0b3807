# SPDX-License-Identifier: MIT
"""Measures the time that attention takes inside a training step, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mps_sdpa.demo.model import Attend


class AttentionClock:
    """Wraps an attention function; `seconds` grows by each call's time in both passes."""

    def __init__(self, attend: Attend, synchronize: Callable[[], None]) -> None:
        self.seconds = 0.0
        self._attend, self._synchronize = attend, synchronize
        self._since = 0.0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        entered = _apply(_Inside, self, query, key, value)
        out: Tensor = _apply(_Outside, self, self._attend(*entered))
        return out

    def start(self) -> None:
        self._synchronize()
        self._since = time.perf_counter()

    def stop(self) -> None:
        self._synchronize()
        self.seconds += time.perf_counter() - self._since


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


class _Inside(torch.autograd.Function):
    """Stands before attention: the forward pass starts here and the backward pass ends here."""

    @staticmethod
    def forward(ctx: Any, clock: AttentionClock, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.clock = clock
        clock.start()
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ctx.clock.stop()
        return (None, *gradients)


class _Outside(torch.autograd.Function):
    """Stands behind attention."""

    @staticmethod
    def forward(ctx: Any, clock: AttentionClock, out: Tensor) -> Tensor:
        ctx.clock = clock
        clock.stop()
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        ctx.clock.start()
        return None, gradient
