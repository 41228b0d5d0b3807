# SPDX-License-Identifier: MIT
"""What one attention call asks for besides its tensors."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

import torch

__all__ = ["Causal", "Settings", "draw_seed"]


class Causal(enum.IntEnum):
    """Which keys a query may see by its position; the values are those of sdpa::Causal."""

    NONE = 0
    UPPER_LEFT = 1
    LOWER_RIGHT = 2


def draw_seed() -> tuple[int, int]:
    """A seed and an offset of dropout, in one draw from torch's generator."""
    seed, offset = torch.randint(0, 2**62, (2,), dtype=torch.int64, device="cpu").tolist()
    return seed, offset & 0xFFFFFFFF


@dataclass(frozen=True)
class Settings:
    """The options of `attention`, parsed. `window` is (left, right) with -1 for an open side.

    `seed` is None where dropout shall draw one when it runs: in graphs, and under transforms.
    `fixes_dropout` says that the caller gave it, so that every back end has to drop the same.
    """

    scale: float | None = None
    causal: Causal = Causal.NONE
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    dropout: float = 0.0
    seed: int | None = 0
    offset: int = 0
    backend: str = "auto"
    fixes_dropout: bool = False

    def drawn(self) -> Settings:
        """With a seed from torch's generator where it has none."""
        if self.seed is not None:
            return self
        seed, offset = draw_seed()
        return dataclasses.replace(self, seed=seed, offset=offset)

    @property
    def is_torchs(self) -> bool:
        """Whether torch's own function has all that is asked for.

        The core asks a stricter question before thresholds may choose torch: calibration has timed
        no dropout and no sinks. This one needs no problem, which not all tensors make.
        """
        return (
            self.softcap == 0.0
            and self.window == (-1, -1)
            and self.causal != Causal.LOWER_RIGHT
            and not self.fixes_dropout
        )
