# SPDX-License-Identifier: MIT
"""The policy of calibration with injected measurements: who takes over from which size on."""

from __future__ import annotations

import math

import pytest
import torch

from mps_sdpa import calibration
from mps_sdpa.crossovers import Ladder, Point, class_of, crossovers, everywhere, ladder

NEVER = math.inf
WORKS = (1.0, 10.0, 100.0)


def points(
    *speedups: float,
    backend: str = "cpu",
    which: str = "forward",
    dtype: str = "float32",
    dim: int = 64,
    spread: float = 0.0,
) -> list[Point]:
    """Measurements at the works of the grid, from the smallest on."""
    return [
        Point(backend, which, dtype, dim, work, speedup, speedup - spread, speedup + spread)
        for work, speedup in zip(WORKS, speedups, strict=False)
    ]


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ((2.0, 2.0, 2.0), 0.0),
        ((0.5, 2.0, 2.0), 10.0),
        ((0.5, 0.9, 2.0), 100.0),
        ((2.0, 0.5, 2.0), 100.0),
        ((2.0, 2.0, 0.5), NEVER),
        ((0.98, 0.98, 0.98), 0.0),
        ((0.5, 0.5), 100.0),
    ],
)
def test_the_least_work(speedups: tuple[float, ...], expected: float) -> None:
    assert ladder(points(*speedups), ["cpu"], WORKS) == {"cpu": expected}
    assert ladder(reversed(points(*speedups)), ["cpu"], WORKS) == {"cpu": expected}


def test_slower_must_be_beyond_doubt() -> None:
    fast = points(2.0, 2.0)[1:]
    assert ladder([*points(0.5, spread=0.6), *fast], ["cpu"], WORKS) == {"cpu": 0.0}
    assert ladder([*points(0.5, spread=0.1), *fast], ["cpu"], WORKS) == {"cpu": 10.0}


@pytest.mark.parametrize(
    ("metal", "graphs", "expected"),
    [
        ((2.0, 2.0, 2.0), (1.5, 1.5, 1.5), {"metal": 0.0, "mpsgraph": 0.0}),
        ((1.5, 1.5, 1.5), (2.0, 2.0, 2.0), {"mpsgraph": 0.0, "metal": 0.0}),
        ((2.0, 2.0, 2.0), (2.0, 2.0, 2.0), {"metal": 0.0, "mpsgraph": 0.0}),
        ((0.5, 2.0, 2.0), (0.5, 1.5, 3.0), {"mpsgraph": 100.0, "metal": 10.0}),
        ((0.5, 1.5, 3.0), (1.5, 2.0, 2.0), {"metal": 100.0, "mpsgraph": 0.0}),
        ((0.5, 0.5, 0.5), (0.4, 0.4, 0.4), {"metal": NEVER, "mpsgraph": NEVER}),
        ((3.0, 1.0, 3.0), (2.0, 2.0, 2.0), {"metal": 100.0, "mpsgraph": 0.0}),
        ((0.5, 2.0, 2.0), (0.5,), {"metal": 10.0, "mpsgraph": 10.0}),
        ((2.0, 2.0, 2.0), (), {"metal": 0.0}),
    ],
)
def test_back_ends_take_over_from_each_other(
    metal: tuple[float, ...], graphs: tuple[float, ...], expected: Ladder
) -> None:
    measured = [*points(*metal, backend="metal"), *points(*graphs, backend="mpsgraph")]
    found = ladder(measured, ["metal", "mpsgraph_zc", "mpsgraph"], WORKS)
    assert list(found.items()) == list(expected.items())


def test_preference_decides_what_is_in_doubt() -> None:
    measured = [
        *points(1.5, 1.5, 1.5, backend="metal", spread=0.3),
        *points(2.0, 2.0, 2.0, backend="mpsgraph", spread=0.3),
    ]
    assert list(ladder(measured, ["metal", "mpsgraph"], WORKS)) == ["metal", "mpsgraph"]


def test_no_choice_is_slower_than_torch_where_it_was_measured() -> None:
    """Whatever the measurements: by walking ladders of random ones."""
    generator = torch.Generator().manual_seed(0)
    names = ["metal", "mpsgraph_zc", "mpsgraph"]
    for _ in range(300):
        speeds = torch.rand(3, 3, generator=generator).mul(2).tolist()
        measured = [
            point
            for name, row in zip(names, speeds, strict=True)
            for point in points(*row, backend=name)
        ]
        found = ladder(measured, names, WORKS)
        assert set(found) == set(names)
        used = []
        for n, work in enumerate(WORKS):
            name = next((name for name, least in found.items() if work >= least), None)
            used.append(name)
            assert name is None or speeds[names.index(name)][n] >= 0.97
        place = [len(names) if name is None else list(found).index(name) for name in used]
        assert place == sorted(place, reverse=True), "each takes over once"


def test_crossovers_are_by_pass_dtype_and_head_dimension() -> None:
    slow_training = points(0.5, 2.0, which="train", dtype="bfloat16", dim=128)
    found = crossovers([*points(2.0, 2.0), *slow_training], ["cpu"], {64: WORKS, 512: WORKS})
    assert found["train"]["bfloat16"] == {64: {}, 512: {"cpu": 10.0}}
    assert found["forward"]["float32"] == {64: {"cpu": 0.0}, 512: {}}
    assert found["forward"]["float16"] == everywhere({})["forward"]["float16"]


def test_a_head_dimension_belongs_to_the_next_bound() -> None:
    assert {dim: class_of(dim) for dim in (1, 64, 65, 512)} == {1: 64, 64: 64, 65: 512, 512: 512}


@pytest.mark.parametrize(
    ("rungs", "expected"),
    [
        ({}, "nothing, so every size is ours"),
        ({"cpu": 0.0}, "cpu at every size"),
        ({"cpu": NEVER}, "torch at every size"),
        ({"cpu": 1e5}, "torch, cpu from 1e+05 on"),
        ({"metal": 4e6, "mpsgraph_zc": 0.0, "mpsgraph": 0.0}, "mpsgraph_zc, metal from 4e+06 on"),
        ({"metal": 4e6, "mpsgraph_zc": 5e6, "mpsgraph": NEVER}, "torch, metal from 4e+06 on"),
    ],
)
def test_a_ladder_in_words(rungs: Ladder, expected: str) -> None:
    assert calibration.in_words(rungs) == expected
