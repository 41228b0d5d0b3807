# SPDX-License-Identifier: MIT
"""Where tensors live: the one place that decides it."""

from __future__ import annotations

from torch import Tensor

__all__ = ["kind"]


def kind(tensor: Tensor) -> str:
    """ "cpu", "mps" for an Apple GPU, or another device's type."""
    return tensor.device.type
