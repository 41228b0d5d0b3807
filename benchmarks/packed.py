# SPDX-License-Identifier: MIT
"""Times packed sequences against torch's function on a padded batch, in interleaved pairs.

    python benchmarks/packed.py                 all rows
    python benchmarks/packed.py --row 0         one row

The padding lies behind the sequences, where causality hides it from every row that counts; so
torch's function needs no mask here, and takes its fast path.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import mps_sdpa
from mps_sdpa.harness import timing

HEADS, DIM = 8, 64


@dataclass(frozen=True)
class Row:
    name: str
    lengths: list[int]
    dtype: torch.dtype


def rows() -> list[Row]:
    mixed = np.random.default_rng(0).integers(4, 101, size=64).tolist()
    return [
        Row("64 of 4 to 100", mixed, torch.float32),
        Row("64 of 4 to 100", mixed, torch.bfloat16),
        Row("1 000 of 8", [8] * 1000, torch.float32),
        Row("8 of 256", [256] * 8, torch.float32),
        Row("one of 1 500, 50 of 30", [1500] + [30] * 50, torch.bfloat16),
    ]


def packed_call(inputs: list[Tensor], lengths: list[int]) -> Callable[[], Tensor]:
    starts = torch.tensor([0, *lengths]).cumsum(0)
    longest = max(lengths)

    def call() -> Tensor:
        found = mps_sdpa.varlen_attention(*inputs, starts, starts, longest, longest, causal=True)
        assert isinstance(found, Tensor)
        return found

    return call


def padded_call(inputs: list[Tensor]) -> Callable[[], Tensor]:
    return lambda: F.scaled_dot_product_attention(*inputs, is_causal=True)


def with_backward(call: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    gradient = torch.randn_like(call())
    return lambda: torch.autograd.grad(call(), inputs, gradient)


def padded(packed: Tensor, lengths: list[int]) -> Tensor:
    """[total, heads, dim] as [batch, heads, longest, dim]."""
    return pad_sequence(list(packed.split(lengths)), batch_first=True).transpose(1, 2).contiguous()


def check(ours: Tensor, theirs: Tensor, lengths: list[int]) -> None:
    """Both give the same for every row that counts."""
    kept = [each[:, :length].transpose(0, 1) for each, length in zip(theirs, lengths, strict=True)]
    tolerance = 1e-4 if ours.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, torch.cat(kept), atol=tolerance, rtol=tolerance)


def measure(row: Row, seconds: float) -> str:
    torch.manual_seed(0)
    packed = [torch.randn(sum(row.lengths), HEADS, DIM).to(row.dtype) for _ in range(3)]
    batch = [padded(each, row.lengths) for each in packed]
    ours, theirs = packed_call(packed, row.lengths), padded_call(batch)
    check(ours(), theirs(), row.lengths)
    cells = [row.name, str(row.dtype).removeprefix("torch."), *times(ours, theirs, seconds)]
    for each in (*packed, *batch):
        each.requires_grad_()
    cells += times(with_backward(ours, packed), with_backward(theirs, batch), seconds)
    return f"| {' | '.join(cells)} |"


def times(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float) -> list[str]:
    timed = timing.paired(ours, theirs, budget=seconds)
    medians = [f"{np.median(each) * 1e3:.3g}" for each in (timed.candidate, timed.baseline)]
    speedup = timed.speedup()
    return [*medians, f"{speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"]


HEADINGS = ["sequences", "dtype", "ours ms", "torch ms", "torch / ours [95 %]"]
HEADINGS += ["ours, training", "torch, training", "torch / ours [95 %]"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", type=int, action="append", help="which rows; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="a timing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = rows()
    print(f"| {' | '.join(HEADINGS)} |\n" + "|---" * len(HEADINGS) + "|")
    for index in options.row or range(len(table)):
        print(measure(table[index], options.seconds), flush=True)


if __name__ == "__main__":
    main()
