# SPDX-License-Identifier: MIT
"""Attention and its gradients in double precision, a tile of rows at a time.

The mathematics is that of sdpa/reference.cpp, which defines it; this one works on whole tiles with
matrix products, so that a length of 8192 takes seconds and megabytes. The tests compare the two.

A tile has all keys that its rows may see, so that output and gradients come from one evaluation of
its probabilities. It is small enough for the cache, and its scratch for the heap: larger blocks
would be mapped and cleared anew for every operation, which took four times as long. For the same
reason each thread has tiles of its own: two threads inside one operation took longer than one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from mps_sdpa.harness.cases import Case
from mps_sdpa.harness.data import Inputs
from mps_sdpa.harness.philox import keep_mask

_TILE_ELEMENTS = 2**18  # 2 MB of scores in double precision


@dataclass(slots=True)
class Result:
    """Output and log-sum-exp, and the gradients by the name of their input."""

    out: torch.Tensor
    lse: torch.Tensor
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Place:
    """Which batch entries and key heads, and which rows and keys of them."""

    batch: slice
    heads: slice
    rows: slice
    keys: slice

    def of_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """[batch, kv_heads, group, rows, ...] of a tensor with all rows."""
        return tensor[self.batch, self.heads, :, self.rows]

    def of_keys(self, tensor: torch.Tensor) -> torch.Tensor:
        """[batch, kv_heads, ..., keys, dim] of a tensor with all keys."""
        return tensor[self.batch, self.heads, ..., self.keys, :]


@dataclass(slots=True)
class _Tile:
    """The probabilities of some rows over the keys that any of them may see."""

    place: _Place
    probabilities: torch.Tensor  # [batch, kv_heads, group, rows, keys]
    sink_probabilities: torch.Tensor  # [batch, kv_heads, group, rows], 0 without sinks
    keep: torch.Tensor | None  # what dropout multiplies the probabilities by
    softcap_slope: torch.Tensor | None
    lse: torch.Tensor

    def kept(self) -> torch.Tensor:
        return self.probabilities if self.keep is None else self.probabilities * self.keep


def _exponentiate(scores: torch.Tensor) -> None:
    """In place, by numpy, which takes half of torch's time for doubles."""
    np.exp(scores.numpy(), out=scores.numpy())


def _by_group(tensor: torch.Tensor, dim: int, kv_heads: int) -> torch.Tensor:
    """A view with the query heads of dimension `dim` as [kv_heads, group]."""
    before, heads, after = tensor.shape[:dim], tensor.shape[dim], tensor.shape[dim + 1 :]
    return tensor.view(*before, kv_heads, heads // kv_heads, *after)


class _Problem:
    """The inputs in double precision, with query heads split as [kv_heads, group]."""

    def __init__(self, case: Case, inputs: Inputs, seed: int) -> None:
        self.case = case
        self.seed = seed
        self.group = case.q_heads // case.kv_heads
        self.scaled_query = self.grouped(inputs.query) * case.softmax_scale
        self.key = inputs.key.detach().double().cpu()[:, :, None]
        self.value = inputs.value.detach().double().cpu()[:, :, None]
        self.mask = None if inputs.mask is None else self._full_mask(inputs.mask.detach().cpu())
        self.sinks = None if inputs.sinks is None else inputs.sinks.detach().double().cpu()
        self.first, self.last = case.key_ranges()

    def grouped(self, tensor: torch.Tensor) -> torch.Tensor:
        return _by_group(tensor.detach().double().cpu(), 1, self.case.kv_heads)

    def _full_mask(self, mask: torch.Tensor) -> torch.Tensor:
        case = self.case
        full = mask.expand(case.batch, case.q_heads, case.q_len, case.kv_len)
        return _by_group(full, 1, case.kv_heads)

    def tiles(self, unit: tuple[slice, slice]) -> Iterator[_Tile]:
        batch, heads = unit
        scores_a_row = (batch.stop - batch.start) * (heads.stop - heads.start) * self.group
        step = max(1, _TILE_ELEMENTS // max(1, scores_a_row * self.case.kv_len))
        for start in range(0, self.case.q_len, step):
            rows = slice(start, min(start + step, self.case.q_len))
            yield self._tile(_Place(batch, heads, rows, self._visible_keys(rows)))

    def units(self) -> Iterator[tuple[slice, slice]]:
        """Batch entries and key heads that share a tile: all of a small problem, else a few."""
        case, head_scores = self.case, self.group * self.case.q_len * self.case.kv_len
        if case.batch * case.kv_heads * head_scores <= _TILE_ELEMENTS:
            yield slice(0, case.batch), slice(0, case.kv_heads)
            return
        step = max(1, _TILE_ELEMENTS // head_scores)
        for entry in range(case.batch):
            for head in range(0, case.kv_heads, step):
                yield slice(entry, entry + 1), slice(head, min(head + step, case.kv_heads))

    def _visible_keys(self, rows: slice) -> slice:
        first = int(self.first[rows].min())
        return slice(first, max(int(self.last[rows].max()), first))

    def _tile(self, place: _Place) -> _Tile:
        weights, slope = self._scores(place)
        none = weights.new_full(weights.shape[:-1], -torch.inf)
        sinks = none if self.sinks is None else self._sink_logits(place, none)
        row_max = torch.maximum(weights.amax(-1), sinks) if weights.shape[-1] else sinks
        safe_max = row_max.where(row_max.isfinite(), 0.0)
        _exponentiate(weights.sub_(safe_max[..., None]))
        sink_weights = (sinks - safe_max).exp()
        row_sum = weights.sum(-1) + sink_weights
        divisor = row_sum.where(row_sum > 0, 1.0)
        return _Tile(
            place=place,
            probabilities=weights.div_(divisor[..., None]),
            sink_probabilities=sink_weights / divisor,
            keep=self._keep(place) if self.case.dropout > 0 else None,
            softcap_slope=slope,
            lse=row_sum.log() + safe_max,
        )

    def _scores(self, place: _Place) -> tuple[torch.Tensor, torch.Tensor | None]:
        softcap, slope = self.case.softcap, None
        scores = place.of_rows(self.scaled_query) @ place.of_keys(self.key).mT
        if softcap > 0:
            capped = torch.tanh(scores / softcap)
            slope = 1 - capped.square()
            scores = softcap * capped
        if self.mask is not None:
            mask = place.of_rows(self.mask)[..., place.keys]
            if mask.dtype is torch.bool:
                scores.masked_fill_(~mask, -torch.inf)
            else:
                scores += mask
        return self._hide_by_position(scores, place), slope

    def _hide_by_position(self, scores: torch.Tensor, place: _Place) -> torch.Tensor:
        first, last = self.first[place.rows], self.last[place.rows]
        if not len(first) or (first.max() <= place.keys.start and last.min() >= place.keys.stop):
            return scores
        key = np.arange(place.keys.start, place.keys.stop)
        hidden = (key < first[:, None]) | (key >= last[:, None])
        return scores.masked_fill_(torch.from_numpy(hidden), -torch.inf)

    def _sink_logits(self, place: _Place, like: torch.Tensor) -> torch.Tensor:
        assert self.sinks is not None
        logits = _by_group(self.sinks, 0, self.case.kv_heads)[place.heads]
        return logits[None, :, :, None].expand_as(like)

    def _keep(self, place: _Place) -> torch.Tensor:
        """Of consecutive heads counted over the batch: a tile has a part of one entry, or all."""
        case = self.case
        first = place.batch.start * case.q_heads + place.heads.start * self.group
        entries, heads = place.batch.stop - place.batch.start, place.heads.stop - place.heads.start
        counted = slice(first, first + entries * heads * self.group)
        kept = keep_mask(case.dropout, self.seed, counted, place.rows, place.keys).double()
        rescale = 0.0 if case.dropout >= 1 else 1 / (1 - case.dropout)
        return kept.reshape(entries, heads, -1, *kept.shape[1:]) * rescale


class _Gradients:
    """Sums what tiles contribute, with query heads split as [kv_heads, group]."""

    def __init__(self, problem: _Problem, inputs: Inputs) -> None:
        leaves = inputs.leaves()
        self.problem = problem
        self.shared = threading.Lock()  # mask and sinks belong to several heads
        self.sums = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in leaves.items()}
        for name in ("key", "value"):  # in memory as their parts come, key by key in each column
            self.sums[name] = torch.zeros(leaves[name].mT.shape, dtype=torch.float64).mT
        self.query = _by_group(self.sums["query"], 1, problem.case.kv_heads)
        self.key, self.value = self.sums["key"], self.sums["value"]
        self.grad_out = problem.grouped(inputs.grad_out)
        self.grad_lse = None if inputs.grad_lse is None else problem.grouped(inputs.grad_lse)

    def add(self, tile: _Tile, out: torch.Tensor) -> None:
        """What the rows of one tile contribute to every gradient."""
        problem, place = self.problem, tile.place
        from_out = place.of_rows(self.grad_out)
        place.of_keys(self.value).add_(self._over_group(tile.kept(), from_out))
        shift = (from_out * out).sum(-1)
        if self.grad_lse is not None:
            shift = shift - place.of_rows(self.grad_lse)
        from_scores = from_out @ place.of_keys(problem.value).mT
        if tile.keep is not None:
            from_scores *= tile.keep
        from_scores.sub_(shift[..., None]).mul_(tile.probabilities)
        if "mask" in self.sums:
            with self.shared:
                self._add_to_mask(place, from_scores)
        if "sinks" in self.sums:
            with self.shared:
                self._add_to_sinks(tile, shift)
        if tile.softcap_slope is not None:
            from_scores *= tile.softcap_slope
        from_key = from_scores @ place.of_keys(problem.key)
        place.of_rows(self.query).copy_(from_key * problem.case.softmax_scale)
        from_query = self._over_group(from_scores, place.of_rows(problem.scaled_query))
        place.of_keys(self.key).add_(from_query)

    def _over_group(self, scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """scores' x rows, summed over the query heads that share keys. By way of the transpose:
        with the keys as columns of the result MKL takes half the time (Zen 4)."""
        product = (rows.mT @ scores).mT
        return product.sum(2) if self.problem.group > 1 else product.squeeze(2)

    def _add_to_sinks(self, tile: _Tile, shift: torch.Tensor) -> None:
        by_head = _by_group(self.sums["sinks"], 0, self.problem.case.kv_heads)
        by_head[tile.place.heads] -= (tile.sink_probabilities * shift).sum((0, 3))

    def _add_to_mask(self, place: _Place, from_scores: torch.Tensor) -> None:
        """Sums over the dimensions along which the mask was broadcast."""
        group = self.problem.group
        heads = slice(place.heads.start * group, place.heads.stop * group)
        part = self.sums["mask"]
        part = part.reshape((1,) * (4 - part.dim()) + part.shape)
        for dim, wanted in enumerate((place.batch, heads, place.rows, place.keys)):
            if part.shape[dim] > 1:
                part = part.narrow(dim, wanted.start, wanted.stop - wanted.start)
        part += from_scores.flatten(1, 2).sum_to_size(part.shape)


def forward(case: Case, inputs: Inputs, *, seed: int = 0) -> Result:
    """Output [batch, q_heads, q_len, v_dim] and log-sum-exp [batch, q_heads, q_len]."""
    return _evaluate(_Problem(case, inputs, seed), None)


def backward(case: Case, inputs: Inputs, *, seed: int = 0) -> Result:
    """The forward result and the gradient of every float input, from `inputs.grad_out`."""
    problem = _Problem(case, inputs, seed)
    return _evaluate(problem, _Gradients(problem, inputs))


def _on_all_threads(
    run: Callable[[tuple[slice, slice]], None], units: list[tuple[slice, slice]]
) -> None:
    """Runs units, which write to different places, each on one thread of torch's number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if min(threads, len(units)) == 1:
            for unit in units:
                run(unit)
        else:
            with ThreadPoolExecutor(
                threads, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                list(pool.map(run, units))
    finally:
        torch.set_num_threads(threads)


def _evaluate(problem: _Problem, gradients: _Gradients | None) -> Result:
    case = problem.case
    shape = (case.batch, case.kv_heads, problem.group, case.q_len)
    out = torch.zeros(*shape, case.v_dim, dtype=torch.float64)
    lse = torch.full(shape, -torch.inf, dtype=torch.float64)

    def run(unit: tuple[slice, slice]) -> None:
        for tile in problem.tiles(unit):
            rows = tile.kept() @ tile.place.of_keys(problem.value)
            tile.place.of_rows(out).copy_(rows)
            tile.place.of_rows(lse).copy_(tile.lse)
            if gradients is not None:
                gradients.add(tile, rows)

    _on_all_threads(run, list(problem.units()))
    sums = {} if gradients is None else gradients.sums
    return Result(out.flatten(1, 2), lse.flatten(1, 2), sums)
