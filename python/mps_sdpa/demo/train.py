# SPDX-License-Identifier: MIT
"""Trains two models from one seed on one text, one step of each in turn, and measures both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mps_sdpa.demo.clock import AttentionClock
from mps_sdpa.demo.model import Attend, Size, Transformer
from mps_sdpa.harness.memory import peak_bytes
from mps_sdpa.harness.peaks import synchronizer

_SEED = 1
_PEAK_RATE = 2e-3
_WARM_UP_STEPS = 10


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train."""

    steps: int = 60
    batch: int = 2
    device: str = "cpu"
    size: Size = field(default_factory=Size)


@dataclass(frozen=True, slots=True)
class Text:
    """The bytes to learn, and what to call them."""

    name: str
    content: bytes

    @staticmethod
    def read(path: Path) -> Text:
        return Text(path.name, path.read_bytes())

    @staticmethod
    def of_python() -> Text:
        """The help topics that every CPython carries."""
        import pydoc_data.topics as topics

        path = Path(str(topics.__file__))
        return Text(f"pydoc_data/{path.name}", path.read_bytes())

    def batches(self, recipe: Recipe) -> Iterator[Tensor]:
        """Random pieces of one byte more than the context; the same for every caller."""
        content = torch.frombuffer(bytearray(self.content), dtype=torch.uint8)
        generator = torch.Generator().manual_seed(_SEED)
        length = recipe.size.context + 1
        for _ in range(recipe.steps):
            starts = torch.randint(len(content) - length + 1, (recipe.batch,), generator=generator)
            pieces = [content[int(start) : int(start) + length] for start in starts]
            yield torch.stack(pieces).long().to(recipe.device)


class Trainee:
    """One of the two models with its optimiser and its measurements."""

    def __init__(self, name: str, attend: Attend, recipe: Recipe) -> None:
        self.name = name
        self.synchronize = synchronizer(recipe.device)
        self.clock = AttentionClock(attend, self.synchronize)
        torch.manual_seed(_SEED)
        self.model = Transformer(recipe.size, self.clock).to(recipe.device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=_PEAK_RATE, fused=True)
        self.losses: list[float] = []
        self.step_seconds: list[float] = []
        self.attention_seconds: list[float] = []
        self.peak_bytes: int | None = None

    def measure_peak(self, tokens: Tensor, device: str) -> None:
        """The peak of memory in one forward and backward pass, which changes no parameter."""
        self.peak_bytes = peak_bytes(
            lambda: torch.autograd.backward(self.model.loss(tokens)), device
        )
        self.optimiser.zero_grad()

    def step(self, tokens: Tensor, rate: float) -> None:
        self.clock.seconds = 0.0
        start = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.model.loss(tokens)
        torch.autograd.backward(loss)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.losses.append(loss.item())
        self.synchronize()
        self.step_seconds.append(time.perf_counter() - start)
        self.attention_seconds.append(self.clock.seconds)

    def measurements(self) -> dict[str, Any]:
        """What a machine reads."""
        return {
            "losses": self.losses,
            "step_ms": self.step_ms,
            "attention_ms": statistics.mean(self.attention_seconds) * 1e3,
            "attention_share": self.attention_share,
            "peak_bytes": self.peak_bytes,
        }

    @property
    def step_ms(self) -> float:
        return statistics.median(self.step_seconds) * 1e3

    @property
    def attention_share(self) -> float:
        return sum(self.attention_seconds) / sum(self.step_seconds)


def rate_at(step: int, steps: int) -> float:
    """A short linear rise, then half a cosine down."""
    rise = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return _PEAK_RATE * rise * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def train_in_turn(
    trainees: tuple[Trainee, Trainee], text: Text, recipe: Recipe, report: Callable[[int], None]
) -> None:
    """One step of each in turn, the first one alternating; `report` hears of every step."""
    for step, tokens in enumerate(text.batches(recipe)):
        if step == 0:
            for trainee in trainees:
                trainee.measure_peak(tokens, recipe.device)
        for trainee in trainees if step % 2 == 0 else reversed(trainees):
            trainee.step(tokens, rate_at(step, recipe.steps))
        report(step)
