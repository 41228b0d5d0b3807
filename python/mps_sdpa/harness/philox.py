# SPDX-License-Identifier: MIT
"""Which probabilities dropout keeps, as sdpa/dropout.h defines it, for a tile at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_Words = np.ndarray[Any, np.dtype[np.uint64]]
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def _philox(counter: list[_Words], seed: int) -> list[_Words]:
    """Philox4x32-10 on words that are held in 64 bits."""
    x, y, z, w = counter
    for turn in range(10):
        key_low = np.uint64(((seed & 0xFFFFFFFF) + turn * 0x9E3779B9) & 0xFFFFFFFF)
        key_high = np.uint64(((seed >> 32) + turn * 0xBB67AE85) & 0xFFFFFFFF)
        first, second = x * np.uint64(0xD2511F53), z * np.uint64(0xCD9E8D57)
        x, y = (second >> _SHIFT) ^ y ^ key_low, second & _LOW
        z, w = (first >> _SHIFT) ^ w ^ key_high, first & _LOW
    return [x, y, z, w]


def keep_mask(
    probability: float, seed: int, heads: slice, rows: slice, keys: slice, *, offset: int = 0
) -> torch.Tensor:
    """Whether (head counted over the batch, row, key) survives, as a bool tensor."""
    count = heads.stop - heads.start
    if probability >= 1:
        return torch.zeros(count, rows.stop - rows.start, keys.stop - keys.start, dtype=torch.bool)
    first_block, last_block = keys.start // 4, -(-keys.stop // 4)
    block, row, head = np.broadcast_arrays(
        np.arange(first_block, last_block, dtype=np.uint64)[None, None, :],
        np.arange(rows.start, rows.stop, dtype=np.uint64)[None, :, None],
        np.arange(heads.start, heads.stop, dtype=np.uint64)[:, None, None],
    )
    words = np.stack(_philox([block, row, head, np.full_like(block, offset)], seed), axis=-1)
    threshold = min(round(probability * 2**32), 2**32 - 1)
    kept = (words >= np.uint64(threshold)).reshape(count, row.shape[1], -1)
    skipped = keys.start - 4 * first_block
    return torch.from_numpy(kept[..., skipped : skipped + keys.stop - keys.start].copy())
