# SPDX-License-Identifier: MIT
"""The table of named cases, which C++ keeps (tests/cases.h), as Python values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mps_sdpa import _core

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "bool": torch.bool,
}
SHORT_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
LONG_NAMES = {short: long for long, short in SHORT_NAMES.items()} | {n: n for n in SHORT_NAMES}


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """What a mask varies over, its dtype and its pattern, in the words of tests/cases.h."""

    kind: str
    dtype: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Case:
    """One attention call to be checked or timed."""

    name: str
    suite: str
    dtype: str
    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    qk_dim: int
    v_dim: int
    mask: MaskSpec | None = None
    causal: str = "none"
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    sinks: bool = False
    dropout: float = 0.0
    scale: float | None = None
    layout: str = "contiguous"
    grad_lse: bool = False
    weight: float = 1.0
    text: str = ""

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def softmax_scale(self) -> float:
        if self.scale is not None:
            return self.scale
        return float(self.qk_dim**-0.5) if self.qk_dim else 1.0

    @property
    def diagonal(self) -> int:
        """How far a query's aligned position is ahead of its index."""
        return self.kv_len - self.q_len if self.causal == "lower_right" else 0

    def key_ranges(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The first and one-past-last key that position lets each query see."""
        position = np.arange(self.q_len, dtype=np.int64) + self.diagonal
        left, right = self.window
        first = np.zeros_like(position) if left < 0 else position - left
        last = np.full_like(position, self.kv_len) if right < 0 else position + right + 1
        if self.causal != "none":
            last = np.minimum(last, position + 1)
        return np.clip(first, 0, self.kv_len), np.clip(last, 0, self.kv_len)

    def flops(self, *, backward: bool = False) -> float:
        """Multiplications and additions on visible pairs; with the backward pass 3.5 times that."""
        first, last = self.key_ranges()
        pairs = float(np.maximum(last - first, 0).sum()) * self.batch * self.q_heads
        forward = 2.0 * pairs * (self.qk_dim + self.v_dim)
        return forward * 3.5 if backward else forward

    def bytes_moved(self) -> int:
        """The bytes of query, key, value and output: the least that memory must carry."""
        queries = self.batch * self.q_heads * self.q_len * (self.qk_dim + self.v_dim)
        keys = self.batch * self.kv_heads * self.kv_len * (self.qk_dim + self.v_dim)
        return (queries + keys) * self.torch_dtype.itemsize


def suite_names() -> list[str]:
    return list(_core.suite_names())


def suite(name: str, *, dtype: str | None = None, limit: int | None = None) -> list[Case]:
    """The cases of a suite, perhaps of one dtype only, and at most `limit` of them.

    A limit takes cases evenly spread over the suite, so that it still meets every kind.
    """
    cases = [_from_dict(entry) for entry in _core.cases(name)]
    if dtype is not None:
        cases = [case for case in cases if case.dtype == LONG_NAMES[dtype]]
    if limit is not None and limit < len(cases):
        cases = [cases[n * len(cases) // limit] for n in range(limit)]
    return cases


def _from_dict(entry: dict[str, Any]) -> Case:
    mask = entry["mask"]
    if mask is not None:
        mask = MaskSpec(mask["kind"], mask["dtype"], mask["pattern"])
    return Case(**{**entry, "mask": mask})
