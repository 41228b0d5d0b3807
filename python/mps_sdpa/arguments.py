# SPDX-License-Identifier: MIT
"""What users pass, checked and parsed. What concerns shapes is checked by the compiled module."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from mps_sdpa.settings import Causal, Settings, draw_seed

__all__ = ["attention_settings", "check_packing", "check_sinks", "check_tensors", "sdpa_settings"]

_CAUSAL = {
    False: Causal.NONE,
    True: Causal.UPPER_LEFT,
    "upper_left": Causal.UPPER_LEFT,
    "lower_right": Causal.LOWER_RIGHT,
}


def _number(name: str, value: Any) -> float:
    if isinstance(value, float):  # compilers can trace this
        return value
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, but got {type(value).__name__}")
    return float(value)


def _probability(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise RuntimeError(f"{name} must be between 0 and 1, but got {number:g}")
    return number


def _scale(value: Any) -> float | None:
    return None if value is None else _number("scale", value)


def _backend(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"backend must be a name, but got {type(value).__name__}")
    return value


def _draws_later() -> bool:
    """Whether the operator is to draw the seed: a graph anew at each run, a transform by itself."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _seed_and_offset(dropout: float, seed: int | None) -> tuple[int | None, int]:
    if dropout == 0:
        return 0, 0
    if seed is None:
        return (None, 0) if _draws_later() else draw_seed()
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer, but got {type(seed).__name__}")
    return seed & 0xFFFFFFFFFFFFFFFF, 0


def check_tensors(query: Any, key: Any, value: Any, attn_mask: Any) -> None:
    """TypeError for what is no tensor; RuntimeError for devices that differ."""
    named = {"query": query, "key": key, "value": value}
    if attn_mask is not None:
        named["attn_mask"] = attn_mask
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, but got {type(tensor).__name__}")
    for name, tensor in named.items():
        if tensor.device != query.device:
            raise RuntimeError(
                f"query, key, value and attn_mask must be on the same device, but query is on "
                f"{query.device} and {name} on {tensor.device}"
            )


def check_sinks(sinks: Any) -> None:
    """TypeError for sinks that are neither None nor a tensor."""
    if sinks is not None and not isinstance(sinks, Tensor):
        raise TypeError(f"sinks must be a Tensor, but got {type(sinks).__name__}")


def sdpa_settings(dropout_p: Any, is_causal: Any, scale: Any, backend: Any) -> Settings:
    """The settings of a call of `sdpa_opt`."""
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal must be a bool, but got {type(is_causal).__name__}")
    dropout = _probability("dropout_p", dropout_p)
    seed, offset = _seed_and_offset(dropout, None)
    return Settings(
        scale=_scale(scale),
        causal=Causal.UPPER_LEFT if is_causal else Causal.NONE,
        dropout=dropout,
        seed=seed,
        offset=offset,
        backend=_backend(backend),
    )


def _window(value: Any) -> tuple[int, int]:
    if value is None:
        return (-1, -1)
    sides = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(sides) != 2 or not all(type(side) is int and side >= -1 for side in sides):
        raise ValueError(
            f"window must be (left, right), each a length or -1 for an open side, but got {value!r}"
        )
    return sides


def _causal(value: Any) -> Causal:
    if not isinstance(value, (bool, str)) or value not in _CAUSAL:
        raise ValueError(
            f"causal must be False, True, 'upper_left' or 'lower_right', but got {value!r}"
        )
    return _CAUSAL[value]


def _softcap(value: Any) -> float:
    number = _number("softcap", value)
    if not 0 <= number < math.inf:
        raise ValueError(f"softcap must be 0 (none) or a positive number, but got {number:g}")
    return number


def attention_settings(
    causal: Any, window: Any, softcap: Any, dropout: Any, scale: Any, seed: Any, backend: Any
) -> Settings:
    """The settings of a call of `attention`."""
    probability = _probability("dropout", dropout)
    drawn, offset = _seed_and_offset(probability, seed)
    return Settings(
        scale=_scale(scale),
        causal=_causal(causal),
        window=_window(window),
        softcap=_softcap(softcap),
        dropout=probability,
        seed=drawn,
        offset=offset,
        backend=_backend(backend),
        fixes_dropout=probability > 0 and seed is not None,
    )


def _starts(name: str, cumulative: Any, total: int, longest: int) -> list[int]:
    if not isinstance(cumulative, Tensor) or cumulative.dim() != 1 or cumulative.numel() < 1:
        raise ValueError(f"{name} must be a vector of starts with the total length at its end")
    starts: list[int] = cumulative.tolist()
    lengths = [after - before for before, after in itertools.pairwise(starts)]
    if starts[0] != 0 or starts[-1] != total or any(length < 0 for length in lengths):
        raise ValueError(f"{name} must rise from 0 to the total length {total}, but got {starts}")
    if lengths and max(lengths) > longest:
        raise ValueError(
            f"the longest sequence of {name} has {max(lengths)} rows, but {longest} are announced"
        )
    return starts


def check_packing(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cumulative: tuple[Any, Any],
    longest: tuple[int, int],
) -> tuple[list[int], list[int]]:
    """The starts of queries and keys as lists, checked against the tensors."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 3:
            raise RuntimeError(
                f"{name} has {tensor.dim()} dimensions; packed tensors are [total, heads, dim]"
            )
    starts_q = _starts("cu_q", cumulative[0], q.size(0), longest[0])
    starts_k = _starts("cu_k", cumulative[1], k.size(0), longest[1])
    if len(starts_q) != len(starts_k):
        raise ValueError(
            f"cu_q has {len(starts_q) - 1} sequences and cu_k {len(starts_k) - 1}; they must agree"
        )
    return starts_q, starts_k
