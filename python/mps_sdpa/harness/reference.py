# SPDX-License-Identifier: MIT
"""Attention and its gradients in double precision, a tile of rows at a time.

The mathematics is that of sdpa/reference.cpp, which defines it; this one works on whole tiles with
matrix products, so that a length of 8192 takes seconds and megabytes. The tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from mps_sdpa.harness.cases import Case
from mps_sdpa.harness.data import Inputs
from mps_sdpa.harness.philox import keep_mask

_TILE_ELEMENTS = 2**22  # 32 MB of scores in double precision


@dataclass(slots=True)
class Result:
    """Output and log-sum-exp, and the gradients by the name of their input."""

    out: torch.Tensor
    lse: torch.Tensor
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Tile:
    """The probabilities of some rows over the keys that any of them may see."""

    rows: slice
    keys: slice
    probabilities: torch.Tensor  # [batch, kv_heads, group, rows, keys]
    sink_probabilities: torch.Tensor  # [batch, kv_heads, group, rows], 0 without sinks
    keep: torch.Tensor | None  # what dropout multiplies the probabilities by
    softcap_slope: torch.Tensor | None
    lse: torch.Tensor


class _Problem:
    """The inputs in double precision, with query heads split as [kv_heads, group]."""

    def __init__(self, case: Case, inputs: Inputs, seed: int) -> None:
        self.case = case
        self.seed = seed
        self.query = self.grouped(inputs.query)
        self.key = inputs.key.detach().double().cpu()[:, :, None]
        self.value = inputs.value.detach().double().cpu()[:, :, None]
        mask = None if inputs.mask is None else inputs.mask.detach().cpu()
        self.mask = None if mask is None else mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
        self.sinks = None if inputs.sinks is None else inputs.sinks.detach().double().cpu()

    def grouped(self, tensor: torch.Tensor) -> torch.Tensor:
        shape = (self.case.batch, self.case.kv_heads, -1, *tensor.shape[2:])
        return tensor.detach().double().cpu().reshape(shape)

    def tiles(self) -> Iterator[_Tile]:
        case = self.case
        scores_a_row = max(1, case.batch * case.q_heads * case.kv_len)
        step = max(1, _TILE_ELEMENTS // scores_a_row)
        first, last = case.key_ranges()
        for start in range(0, case.q_len, step):
            rows = slice(start, min(start + step, case.q_len))
            keys = slice(int(first[rows].min()), max(int(last[rows].max()), int(first[rows].min())))
            yield self._tile(rows, keys)

    def _tile(self, rows: slice, keys: slice) -> _Tile:
        scores, slope = self._scores(rows, keys)
        row_max = (
            scores.amax(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -np.inf)
        )
        sinks = self._sink_logits(row_max)
        row_max = torch.maximum(row_max, sinks)
        safe_max = row_max.where(row_max.isfinite(), 0.0)
        weights = (scores - safe_max[..., None]).exp()
        sink_weights = (sinks - safe_max).exp()
        row_sum = weights.sum(-1) + sink_weights
        divisor = row_sum.where(row_sum > 0, 1.0)
        return _Tile(
            rows=rows,
            keys=keys,
            probabilities=weights / divisor[..., None],
            sink_probabilities=sink_weights / divisor,
            keep=self._keep(rows, keys),
            softcap_slope=slope,
            lse=row_sum.log() + safe_max,
        )

    def _scores(self, rows: slice, keys: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        case, slope = self.case, None
        scores = self.query[..., rows, :] @ self.key[..., keys, :].mT * case.softmax_scale
        if case.softcap > 0:
            capped = torch.tanh(scores / case.softcap)
            slope = 1 - capped.square()
            scores = case.softcap * capped
        if self.mask is not None:
            mask = self._broadcast_mask(rows, keys)
            scores = (
                scores.masked_fill(~mask, -torch.inf)
                if mask.dtype is torch.bool
                else scores + mask.double()
            )
        first, last = (torch.from_numpy(bound[rows])[:, None] for bound in case.key_ranges())
        position = torch.arange(keys.start, keys.stop)
        return scores.masked_fill((position < first) | (position >= last), -torch.inf), slope

    def _broadcast_mask(self, rows: slice, keys: slice) -> torch.Tensor:
        assert self.mask is not None
        full = (self.case.batch, self.case.q_heads, self.case.q_len, self.case.kv_len)
        part = self.mask.expand(full)[:, :, rows, keys]
        return part.reshape(part.shape[0], self.case.kv_heads, -1, *part.shape[2:])

    def _sink_logits(self, like: torch.Tensor) -> torch.Tensor:
        if self.sinks is None:
            return torch.full_like(like, -torch.inf)
        return self.sinks.reshape(1, self.case.kv_heads, -1, 1).expand_as(like)

    def _keep(self, rows: slice, keys: slice) -> torch.Tensor | None:
        case = self.case
        if case.dropout <= 0:
            return None
        heads = case.batch * case.q_heads
        kept = keep_mask(case.dropout, self.seed, heads, rows, keys).double()
        rescale = 0.0 if case.dropout >= 1 else 1 / (1 - case.dropout)
        return kept.reshape(case.batch, case.kv_heads, -1, *kept.shape[1:]) * rescale


def forward(case: Case, inputs: Inputs, *, seed: int = 0) -> Result:
    """Output [batch, q_heads, q_len, v_dim] and log-sum-exp [batch, q_heads, q_len]."""
    problem = _Problem(case, inputs, seed)
    out = torch.zeros(case.batch, case.q_heads, case.q_len, case.v_dim, dtype=torch.float64)
    lse = torch.full((case.batch, case.q_heads, case.q_len), -torch.inf, dtype=torch.float64)
    for tile in problem.tiles():
        out[:, :, tile.rows] = _output(problem, tile).flatten(1, 2)
        lse[:, :, tile.rows] = tile.lse.flatten(1, 2)
    return Result(out, lse)


def _output(problem: _Problem, tile: _Tile) -> torch.Tensor:
    kept = tile.probabilities if tile.keep is None else tile.probabilities * tile.keep
    return kept @ problem.value[..., tile.keys, :]


def backward(case: Case, inputs: Inputs, *, seed: int = 0) -> Result:
    """The forward result and the gradient of every float input, from `inputs.grad_out`."""
    problem = _Problem(case, inputs, seed)
    result = forward(case, inputs, seed=seed)
    shapes = {name: leaf.shape for name, leaf in inputs.leaves().items()}
    gradients = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    grad_out = problem.grouped(inputs.grad_out)
    grad_lse = None if inputs.grad_lse is None else problem.grouped(inputs.grad_lse)
    for tile in problem.tiles():
        _accumulate(problem, tile, grad_out, grad_lse, gradients)
    result.gradients = gradients
    return result


def _accumulate(
    problem: _Problem,
    tile: _Tile,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    gradients: dict[str, torch.Tensor],
) -> None:
    """Adds what the rows of one tile contribute to every gradient."""
    rows, keys, scale = tile.rows, tile.keys, problem.case.softmax_scale
    from_out = grad_out[..., rows, :]
    query, key, value = problem.query[..., rows, :], problem.key[..., keys, :], problem.value
    kept = tile.probabilities if tile.keep is None else tile.probabilities * tile.keep
    gradients["value"][:, :, keys] += (kept.mT @ from_out).sum(2)
    shift = (from_out * _output(problem, tile)).sum(-1)
    if grad_lse is not None:
        shift = shift - grad_lse[..., rows]
    from_kept = from_out @ value[..., keys, :].mT
    from_probabilities = from_kept if tile.keep is None else from_kept * tile.keep
    from_scores = tile.probabilities * (from_probabilities - shift[..., None])
    if "mask" in gradients:
        _add_mask_gradient(problem, tile, from_scores, gradients["mask"])
    if "sinks" in gradients:
        gradients["sinks"] -= (tile.sink_probabilities * shift).sum((0, 3)).flatten()
    if tile.softcap_slope is not None:
        from_scores = from_scores * tile.softcap_slope
    gradients["query"][:, :, rows] = (scale * from_scores @ key).flatten(1, 2)
    gradients["key"][:, :, keys] += (scale * from_scores.mT @ query).sum(2)


def _add_mask_gradient(
    problem: _Problem, tile: _Tile, from_scores: torch.Tensor, gradient: torch.Tensor
) -> None:
    """Sums over the dimensions along which the mask was broadcast."""
    full = gradient.reshape((1,) * (4 - gradient.dim()) + gradient.shape)
    part = full[:, :, tile.rows if full.shape[2] > 1 else slice(0, 1), :]
    part = part[..., tile.keys if full.shape[3] > 1 else slice(0, 1)]
    contribution = from_scores.flatten(1, 2)
    for dim, extent in enumerate(part.shape):
        if extent == 1:
            contribution = contribution.sum(dim, keepdim=True)
    part += contribution
