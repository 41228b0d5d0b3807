# SPDX-License-Identifier: MIT
"""The policy with injected measurements, the cache, and that what is found is used."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch_mps import Gpu, apple_gpu

import mps_sdpa
from mps_sdpa import calibration, engine, threshold_cache
from mps_sdpa.crossovers import PASSES, Point, crossovers, everywhere, minimum_work
from mps_sdpa.environment import environment


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and measurements of its own for each test, and the built-in thresholds after it."""
    monkeypatch.setenv("MPS_SDPA_CACHE_DIR", str(tmp_path))
    environment.cache_clear()
    monkeypatch.setattr(engine, "_thresholds", {})
    monkeypatch.setattr(calibration, "_prepared", set())
    monkeypatch.setattr(calibration, "_points", {})
    monkeypatch.setattr(calibration, "_disturbed", {})
    return tmp_path / "thresholds.json"


def points(
    *speedups: float, which: str = "forward", dtype: str = "float32", dim: int = 64
) -> list[Point]:
    return [Point(which, dtype, dim, 10.0**n, speedup) for n, speedup in enumerate(speedups)]


# --- policy ---


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ((2.0, 2.0, 2.0), 0.0),
        ((0.5, 2.0, 2.0), 10.0),
        ((0.5, 0.9, 2.0), 100.0),
        ((2.0, 0.5, 2.0), 100.0),
        ((2.0, 2.0, 0.5), math.inf),
        ((0.98, 0.98, 0.98), 0.0),
        ((), 0.0),
    ],
)
def test_minimum_work(speedups: tuple[float, ...], expected: float) -> None:
    assert minimum_work(points(*speedups)) == expected
    assert minimum_work(reversed(points(*speedups))) == expected


def test_slower_must_be_beyond_doubt() -> None:
    doubtful = Point("forward", "float32", 64, 1.0, 0.5, high=1.1)
    certain = Point("forward", "float32", 64, 1.0, 0.5, high=0.6)
    assert minimum_work([doubtful, *points(2.0, 2.0)[1:]]) == 0.0
    assert minimum_work([certain, *points(2.0, 2.0)[1:]]) == 10.0


def test_crossovers_are_by_pass_dtype_and_head_dimension() -> None:
    slow_training = points(0.5, 2.0, which="train", dtype="bfloat16", dim=128)
    found = crossovers([*points(2.0, 2.0), *slow_training])
    assert found["train"]["bfloat16"] == {64: 0.0, 512: 10.0}
    assert found["forward"] == everywhere(0.0)["forward"]


def test_a_head_dimension_belongs_to_the_next_bound() -> None:
    bounds = {dim: Point("forward", "float32", dim, 1.0, 1.0).dims for dim in (1, 64, 65, 512)}
    assert bounds == {1: 64, 64: 64, 65: 512, 512: 512}


# --- the cache ---


def test_kept_thresholds_come_back(cache: Path) -> None:
    thresholds = everywhere(5.0)
    thresholds["train"]["float16"][512] = math.inf
    assert threshold_cache.write("cpu", thresholds)
    assert threshold_cache.read("cpu") == thresholds
    assert threshold_cache.read("mps") is None
    assert not list(cache.parent.glob("*.tmp"))


def test_devices_do_not_displace_each_other() -> None:
    threshold_cache.write("cpu", everywhere(1.0))
    threshold_cache.write("mps", everywhere(2.0))
    assert threshold_cache.read("cpu") == everywhere(1.0)
    assert threshold_cache.read("mps") == everywhere(2.0)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"fingerprint": 1}',
        '{"fingerprint": FINGERPRINT, "devices": []}',
        '{"fingerprint": FINGERPRINT, "devices": {"cpu": {"forward": {}}}}',
        '{"fingerprint": FINGERPRINT, "devices": {"cpu": 3}}',
        '{"fingerprint": FINGERPRINT, "devices": {"cpu": {"forward": {"float32": 1}}}}',
    ],
)
def test_damaged_files_are_ignored(
    content: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text(content.replace("FINGERPRINT", json.dumps(threshold_cache.fingerprint())))
    assert threshold_cache.read("cpu") is None
    assert "ignored" in caplog.text


@pytest.mark.parametrize("work", [-1, "many", [1]])
def test_impossible_thresholds_are_ignored(work: object, cache: Path) -> None:
    threshold_cache.write("cpu", everywhere(1.0))
    content = json.loads(cache.read_text())
    content["devices"]["cpu"]["forward"]["float32"]["64"] = work
    cache.write_text(json.dumps(content))
    assert threshold_cache.read("cpu") is None


@pytest.mark.parametrize("field", ["schema", "chip", "torch", "mps_sdpa"])
def test_foreign_files_are_ignored(
    field: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    threshold_cache.write("cpu", everywhere(1.0))
    content = json.loads(cache.read_text())
    content["fingerprint"][field] = "another"
    cache.write_text(json.dumps(content))
    assert threshold_cache.read("cpu") is None
    assert "another machine or version" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MPS_SDPA_CACHE_DIR", str(tmp_path / "file" / "below"))
    environment.cache_clear()
    assert not threshold_cache.write("cpu", everywhere(1.0))
    assert "are not kept" in caplog.text


def _write_often(device: str) -> None:
    for _ in range(20):
        threshold_cache.write(device, everywhere(1.0))


def test_processes_do_not_lose_each_others_devices() -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(name,)) for name in ("cpu", "mps")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert threshold_cache.read("cpu") == threshold_cache.read("mps") == everywhere(1.0)


# --- use ---


def choice(length: int = 64, *, quiet: bool = True, dim: int = 64) -> dict[str, object]:
    tensor = torch.zeros(1, 4, length, dim)
    return mps_sdpa.explain(tensor, tensor, tensor, quiet=quiet)


def test_thresholds_send_small_problems_to_torch() -> None:
    threshold_cache.write("cpu", everywhere(4.0 * 128 * 128 * 64))
    calibration.use_cached("cpu")
    assert choice(64)["backend"] == "stock"
    assert choice(128)["backend"] == "cpu"
    assert "float32 forward D<=64 4.2e+06" in str(choice()["calibration"])


def test_each_class_of_head_dimensions_has_its_own_threshold() -> None:
    thresholds = everywhere(0.0)
    thresholds["forward"]["float32"][512] = math.inf
    threshold_cache.write("cpu", thresholds)
    calibration.use_cached("cpu")
    assert choice(dim=64)["backend"] == "cpu"
    assert choice(dim=65)["backend"] == "stock"


def test_skipping_leaves_the_built_in_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    threshold_cache.write("cpu", everywhere(math.inf))
    monkeypatch.setenv("MPS_SDPA_SKIP_CALIBRATION", "1")
    environment.cache_clear()
    calibration.use_cached("cpu")
    assert choice()["backend"] == "cpu"
    assert "MPS_SDPA_SKIP_CALIBRATION" in str(choice()["calibration"])


def measured(monkeypatch: pytest.MonkeyPatch, speedup: float) -> list[str]:
    """Replaces the clock: every point has this speed-up. The list has the back ends measured."""
    asked: list[str] = []

    def measure(backend: str, device: str) -> list[Point]:
        asked.append(backend)
        return points(speedup, dtype="float32")

    monkeypatch.setattr(calibration, "_measure", measure)
    return asked


def test_calibrate_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, 0.5)
    assert calibration.calibrate("cpu")["forward"]["float32"][64] == math.inf
    assert calibration.calibrate("cpu")["forward"]["float32"][64] == math.inf
    assert asked == ["cpu"]
    assert choice()["backend"] == "stock"
    measured(monkeypatch, 2.0)
    assert calibration.calibrate("cpu", force=True)["forward"]["float32"][64] == 0.0
    assert choice()["backend"] == "cpu"


def test_what_is_measured_on_a_busy_machine_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measured(monkeypatch, 0.5)
    monkeypatch.setattr("mps_sdpa.harness.environment.Watch._others", lambda _: 0.6)
    assert calibration.calibrate("cpu") == everywhere(0.0)
    assert threshold_cache.read("cpu") is None
    assert choice()["backend"] == "cpu"
    assert "Other programs used 60% of the CPU" in str(choice()["calibration"])
    assert "nothing was kept" in caplog.text


def test_slower_must_be_seen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([0.5, 2.0])
    monkeypatch.setitem(calibration._LENGTHS, "cpu", (16,))
    monkeypatch.setattr(calibration, "_DIMS", (64,))
    monkeypatch.setattr(calibration, "_MEASURED", ("float32",))
    monkeypatch.setattr(calibration, "PASSES", ("forward",))
    monkeypatch.setattr(
        calibration, "_time", lambda *_: Point("forward", "float32", 64, 1.0, next(speeds))
    )
    (point,) = calibration._measure("cpu", "cpu")
    assert point.speedup == 2.0


def test_force_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, 2.0)
    calibration.calibrate("cpu")
    monkeypatch.setenv("MPS_SDPA_FORCE_CALIBRATE", "1")
    environment.cache_clear()
    calibration.calibrate("cpu")
    assert asked == ["cpu", "cpu"]


def test_a_device_without_a_back_end_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no back end can be used on device 'meta'"):
        calibration.calibrate("meta")


class Clock:
    """A clock that stands still but for what measurements are said to take."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds, self.measured = 0.0, seconds, 0

    def time(self, *_: object) -> Point:
        self.now += self.seconds
        self.measured += 1
        return Point("forward", "float32", 64, 1.0, 2.0)


@pytest.mark.parametrize(("seconds", "measured"), [(0.01, 48), (0.062, 48), (0.5, 6), (9.0, 1)])
def test_measuring_ends_within_the_budget(
    seconds: float,
    measured: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock(seconds)
    monkeypatch.setattr(calibration.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(calibration, "_time", clock.time)
    with caplog.at_level("INFO", "mps_sdpa.calibration"):
        found = list(calibration._measure("cpu", "cpu"))
    assert len(found) == clock.measured == measured
    assert clock.now <= 3.0 or measured == 1
    assert ("its budget of 3 s is spent" in caplog.text) == (measured < 48)


def test_measurements_are_not_the_users_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(backend: str, device: str) -> list[Point]:
        for name in (backend, "stock"):
            mps_sdpa.sdpa_opt(*torch.zeros(3, 1, 2, 8, 8), backend=name)
        return []

    monkeypatch.setattr(calibration, "_measure", measure)
    mps_sdpa.sdpa_opt(*torch.zeros(3, 1, 2, 8, 8))
    calibration.calibrate("cpu")
    assert mps_sdpa.get_call_stats() == {"cpu": 1}


def test_the_real_path_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mps_sdpa.harness.environment.Watch._others", lambda _: 0.0)
    monkeypatch.setitem(calibration._LENGTHS, "cpu", (16,))
    monkeypatch.setattr(calibration.time, "monotonic", lambda: 0.0)  # the budget is never spent
    found = calibration.calibrate("cpu")
    assert set(found) == set(PASSES)
    assert len(calibration.measured_points("cpu")) == 12
    assert all(point.speedup > 0 for point in calibration.measured_points("cpu"))


# --- an Apple GPU: by itself, at the first call ---


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with apple_gpu() as played:
        calibration._prepared.clear()  # the stand-in's own calls are not to be preceded by any
        yield played


def call(**options: object) -> torch.Tensor:
    return mps_sdpa.sdpa_opt(*torch.randn(3, 1, 2, 8, 8), **options)  # type: ignore[arg-type]


def test_the_first_call_on_a_gpu_measures(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, 0.5)
    call()
    call()
    assert asked == ["metal"]
    assert threshold_cache.read("mps") is not None
    assert mps_sdpa.get_call_stats() == {"stock": 2}
    assert mps_sdpa.get_fallback_stats() == {"short sequence": 2}
    assert choice(8)["backend"] == "stock"


def test_what_is_kept_for_a_gpu_is_not_measured_again(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    threshold_cache.write("mps", everywhere(math.inf))
    asked = measured(monkeypatch, 2.0)
    call()
    assert asked == []
    assert mps_sdpa.get_call_stats() == {"stock": 1}


@pytest.mark.parametrize("options", [{"backend": "metal"}, {"dropout_p": 0.5}])
def test_a_call_that_no_threshold_decides_measures_nothing(
    options: dict[str, object], gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch, 2.0)
    call(**options)
    mps_sdpa.attention(*torch.randn(3, 1, 2, 8, 8), softcap=1.0)
    assert asked == []


def test_skipping_measures_nothing_on_a_gpu(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, 0.5)
    monkeypatch.setenv("MPS_SDPA_SKIP_CALIBRATION", "1")
    environment.cache_clear()
    call()
    assert asked == []
    assert mps_sdpa.get_call_stats() == {"metal": 1}


def test_nothing_is_measured_inside_a_compiled_or_traced_region(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch, 0.5)
    q = torch.randn(1, 2, 8, 8)
    torch.compile(mps_sdpa.sdpa_opt, backend="eager", fullgraph=True)(q, q, q)
    make_fx(lambda x: mps_sdpa.sdpa_opt(x, x, x))(q)
    torch.func.grad(lambda x: mps_sdpa.sdpa_opt(x, q, q).sum())(q)
    assert asked == []


def test_a_measurement_that_fails_does_not_fail_the_call(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measure(backend: str, device: str) -> list[Point]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(calibration, "_measure", measure)
    call()
    assert "calibration failed, so the built-in crossovers serve: no memory" in caplog.text
    assert mps_sdpa.get_call_stats() == {"metal": 1}


def test_nothing_is_measured_at_import() -> None:
    program = "import mps_sdpa, sys; sys.exit('mps_sdpa.harness.timing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
