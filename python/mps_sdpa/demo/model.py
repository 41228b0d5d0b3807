# SPDX-License-Identifier: MIT
"""A byte-level transformer whose attention function is given from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of the model."""

    layers: int = 4
    heads: int = 8
    dim: int = 256
    context: int = 1024


class Block(nn.Module):
    """Attention and a feed-forward part, each normalised before and added to its input."""

    def __init__(self, size: Size, attend: Attend) -> None:
        super().__init__()
        self.heads, self.attend = size.heads, attend
        self.norm_attention, self.norm_feed = nn.LayerNorm(size.dim), nn.LayerNorm(size.dim)
        self.project_in = nn.Linear(size.dim, 3 * size.dim, bias=False)
        self.project_out = nn.Linear(size.dim, size.dim, bias=False)
        self.feed = nn.Sequential(
            nn.Linear(size.dim, 4 * size.dim), nn.GELU(), nn.Linear(4 * size.dim, size.dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        packed = self.project_in(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed: Tensor = self.attend(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.project_out(mixed)
        fed: Tensor = self.feed(self.norm_feed(x))
        return x + fed


class Transformer(nn.Module):
    """Predicts the next byte of a text."""

    def __init__(self, size: Size, attend: Attend) -> None:
        super().__init__()
        self.size = size
        self.bytes = nn.Embedding(VOCABULARY, size.dim)
        self.positions = nn.Embedding(size.context, size.dim)
        self.blocks = nn.ModuleList(Block(size, attend) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.dim)
        self.head = nn.Linear(size.dim, VOCABULARY, bias=False)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def loss(self, tokens: Tensor) -> Tensor:
        """The mean cross-entropy of every byte but the first, in nats."""
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def continue_text(self, prompt: bytes, length: int, *, seed: int = 0) -> bytes:
        """Draws `length` more bytes, each from the last 256."""
        device = self.head.weight.device
        seen_bytes = min(256, self.size.context)
        generator = torch.Generator().manual_seed(seed)
        tokens = list(prompt)
        for _ in range(length):
            seen = torch.tensor([tokens[-seen_bytes:]], device=device)
            likely = (self(seen)[0, -1].float().cpu() / 0.6).softmax(-1)
            tokens.append(int(torch.multinomial(likely, 1, generator=generator)))
        return bytes(tokens)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
