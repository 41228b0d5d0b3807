# SPDX-License-Identifier: MIT
"""The tensors of a case, from a seed, laid out in memory as the case says."""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass

import torch

from mps_sdpa.harness.cases import DTYPES, Case

_HUGE_STRIDE = 2**31 + 64
_NO_RESERVE = 0x40 if sys.platform == "darwin" else 0x4000  # Python names it from 3.13 on


@dataclass(slots=True)
class Inputs:
    """Query, key, value and what else a case has."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    sinks: torch.Tensor | None
    grad_out: torch.Tensor
    grad_lse: torch.Tensor | None

    def leaves(self) -> dict[str, torch.Tensor]:
        """The tensors that have a gradient, by name."""
        named = {"query": self.query, "key": self.key, "value": self.value}
        if self.mask is not None and self.mask.is_floating_point():
            named["mask"] = self.mask
        if self.sinks is not None:
            named["sinks"] = self.sinks
        return named

    def require_grad(self) -> None:
        for tensor in self.leaves().values():
            tensor.requires_grad_()


def make_inputs(case: Case, *, seed: int = 0, device: str = "cpu") -> Inputs:
    """Normally distributed inputs in the case's dtype; the same for the same seed everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(case.torch_dtype)

    key_batch = 1 if case.layout == "expanded_batch" else case.batch
    query = normal(case.batch, case.q_heads, case.q_len, case.qk_dim)
    key = normal(key_batch, case.kv_heads, case.kv_len, case.qk_dim)
    value = normal(key_batch, case.kv_heads, case.kv_len, case.v_dim)
    sinks = torch.randn(case.q_heads, generator=generator) if case.sinks else None
    grad_out = normal(case.batch, case.q_heads, case.q_len, case.v_dim)
    grad_lse = torch.randn(case.batch, case.q_heads, case.q_len, generator=generator)
    mask = make_mask(case, torch.Generator().manual_seed(seed + 1))

    def place(tensor: torch.Tensor) -> torch.Tensor:
        return lay_out(tensor.to(device), case.layout)

    if case.layout == "expanded_batch":
        key, value = (t.to(device).expand(case.batch, -1, -1, -1) for t in (key, value))
        query = query.to(device)
    else:
        query, key, value = place(query), place(key), place(value)
    return Inputs(
        query=query,
        key=key,
        value=value,
        mask=None if mask is None else mask.to(device),
        sinks=None if sinks is None else sinks.to(device),
        grad_out=grad_out.to(device),
        grad_lse=grad_lse.to(device) if case.grad_lse else None,
    )


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values at other addresses: really strided, never a contiguous copy."""
    batch, heads, length, dim = tensor.shape
    if layout == "transposed":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        outer = tensor.new_full((batch + 1, heads + 1, length + 3, dim + 5), float("nan"))
        inner = outer[1:, :heads, 1 : length + 1, 3 : dim + 3]
        return inner.copy_(tensor)
    if layout == "column_stride":
        return tensor.new_full((batch, heads, length, 2 * dim), float("nan"))[..., ::2].copy_(
            tensor
        )
    if layout in ("huge_rows", "huge_heads"):
        return _far_apart(tensor, rows=layout == "huge_rows")
    return tensor


def _far_apart(tensor: torch.Tensor, *, rows: bool) -> torch.Tensor:
    """Rows or heads more than 2^31 elements apart, in memory that is reserved, not used."""
    _, heads, length, dim = tensor.shape
    strides = [heads * length * dim, length * dim, dim, 1]
    if rows:
        strides[2] = _HUGE_STRIDE
        strides[1] = dim
        strides[0] = heads * dim
    else:
        strides[1] = _HUGE_STRIDE
        strides[0] = length * dim
    extent = sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True)) + 1
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, extent * tensor.element_size(), flags=flags)
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    return flat.as_strided(tensor.shape, strides).copy_(tensor)


def make_mask(case: Case, generator: torch.Generator) -> torch.Tensor | None:
    """The mask of a case in its own small shape; broadcasting is left to the callee."""
    if case.mask is None:
        return None
    shape = {
        "full": (case.batch, 1, case.q_len, case.kv_len),
        "per_head": (case.batch, case.q_heads, case.q_len, case.kv_len),
        "matrix": (case.q_len, case.kv_len),
        "keys": (case.batch, 1, 1, case.kv_len),
        "rows": (case.batch, 1, case.q_len, 1),
    }[case.mask.kind]
    additive = case.mask.dtype != "bool"
    visible = _visible(shape, case.mask.pattern, additive, generator)
    if not additive:
        return visible
    values = torch.rand(shape, generator=generator) * -2
    return values.masked_fill_(~visible, float("-inf")).to(DTYPES[case.mask.dtype])


def _visible(
    shape: tuple[int, ...], pattern: str, additive: bool, generator: torch.Generator
) -> torch.Tensor:
    rows, keys = torch.arange(shape[-2])[:, None], torch.arange(shape[-1])[None, :]
    if pattern == "random":
        return torch.rand(shape, generator=generator) > (0.1 if additive else 0.2)
    if pattern == "blocks":
        kind = (rows // 32 + keys // 32) % 3
        mixed = torch.rand(shape, generator=generator) > 0.5
        return (kind == 2) | ((kind == 1) & mixed)
    hidden = {
        "soft": torch.zeros(1, 1, dtype=torch.bool),
        "empty_row": (rows == 0).expand(-1, shape[-1]),
        "empty_rows": (rows % 3 == 0).expand(-1, shape[-1]),
        "tail": keys >= shape[-1] - shape[-1] // 3,
        "all": torch.ones(1, 1, dtype=torch.bool),
    }[pattern]
    return ~hidden.expand(shape)
