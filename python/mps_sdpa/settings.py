# SPDX-License-Identifier: MIT
"""What one attention call asks for besides its tensors."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Causal", "Settings"]


class Causal(enum.IntEnum):
    """Which keys a query may see by its position; the values are those of sdpa::Causal."""

    NONE = 0
    UPPER_LEFT = 1
    LOWER_RIGHT = 2


@dataclass(frozen=True)
class Settings:
    """The options of `attention`, parsed. `window` is (left, right) with -1 for an open side."""

    scale: float | None = None
    causal: Causal = Causal.NONE
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    offset: int = 0
    backend: str = "auto"

    @property
    def is_torchs(self) -> bool:
        """Whether torch's own function has all that is asked for."""
        return self.softcap == 0.0 and self.window == (-1, -1) and self.causal != Causal.LOWER_RIGHT
