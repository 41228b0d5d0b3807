# SPDX-License-Identifier: MIT
"""The cache of calibration, measuring, and that what is found is used."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from test_crossovers import NEVER, points
from torch.fx.experimental.proxy_tensor import make_fx
from torch_mps import Gpu, apple_gpu

import mps_sdpa
from mps_sdpa import calibration, mps, stats, threshold_cache
from mps_sdpa.crossovers import PASSES, Point, everywhere
from mps_sdpa.environment import environment


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each test."""
    monkeypatch.setenv("MPS_SDPA_CACHE_DIR", str(tmp_path))
    environment.cache_clear()
    return tmp_path / "thresholds.json"


# --- the cache ---


def test_kept_thresholds_come_back(cache: Path) -> None:
    thresholds = everywhere({"cpu": 5.0})
    thresholds["train"]["float16"][512] = {"metal": NEVER, "cpu": 3.0}
    assert threshold_cache.write("cpu", thresholds, points(2.0, 3.0))
    assert threshold_cache.read("cpu") == thresholds
    kept = threshold_cache.read("cpu")
    assert kept is not None and list(kept["train"]["float16"][512]) == ["metal", "cpu"]
    assert threshold_cache.read_points("cpu") == points(2.0, 3.0)
    assert threshold_cache.read("mps") is None
    assert not list(cache.parent.glob("*.tmp"))


def test_devices_do_not_displace_each_other() -> None:
    threshold_cache.write("cpu", everywhere({"cpu": 1.0}))
    threshold_cache.write("mps", everywhere({"cpu": 2.0}))
    assert threshold_cache.read("cpu") == everywhere({"cpu": 1.0})
    assert threshold_cache.read("mps") == everywhere({"cpu": 2.0})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"fingerprint": 1}',
        '{"fingerprint": FINGERPRINT, "devices": []}',
        '{"fingerprint": FINGERPRINT, "devices": {"cpu": {"ladders": {"forward": {}}}}}',
        '{"fingerprint": FINGERPRINT, "devices": {"cpu": 3}}',
        '{"fingerprint": FINGERPRINT, "devices": {"cpu": {"ladders": {"forward": 1}}}}',
    ],
)
def test_damaged_files_are_ignored(
    content: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text(content.replace("FINGERPRINT", json.dumps(threshold_cache.fingerprint())))
    assert threshold_cache.read("cpu") is None
    assert threshold_cache.read_points("cpu") == []
    assert "ignored" in caplog.text


@pytest.mark.parametrize("work", [-1, "many", [1]])
def test_impossible_thresholds_are_ignored(work: object, cache: Path) -> None:
    threshold_cache.write("cpu", everywhere({"cpu": 1.0}))
    content = json.loads(cache.read_text())
    for wrong in ({"cpu": work}, [work], work):
        content["devices"]["cpu"]["ladders"]["forward"]["float32"]["64"] = wrong
        cache.write_text(json.dumps(content))
        assert threshold_cache.read("cpu") is None


@pytest.mark.parametrize("field", ["schema", "chip", "torch", "mps_sdpa"])
def test_foreign_files_are_ignored(
    field: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    threshold_cache.write("cpu", everywhere({"cpu": 1.0}))
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
    assert not threshold_cache.write("cpu", everywhere({"cpu": 1.0}))
    assert "are not kept" in caplog.text


def _write_often(device: str) -> None:
    for _ in range(20):
        threshold_cache.write(device, everywhere({"cpu": 1.0}))


def test_processes_do_not_lose_each_others_devices() -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(name,)) for name in ("cpu", "mps")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert threshold_cache.read("cpu") == threshold_cache.read("mps") == everywhere({"cpu": 1.0})


# --- use ---


def choice(length: int = 64, *, quiet: bool = True, dim: int = 64) -> dict[str, object]:
    tensor = torch.zeros(1, 4, length, dim)
    return mps_sdpa.explain(tensor, tensor, tensor, quiet=quiet)


def test_thresholds_send_small_problems_to_torch() -> None:
    threshold_cache.write("cpu", everywhere({"cpu": 4.0 * 128 * 128 * 64}))
    calibration.use_cached("cpu")
    assert choice(64)["backend"] == "stock"
    assert choice(128)["backend"] == "cpu"
    assert choice()["calibration"] == (
        "Measured on this machine for forward in float32 with head dimensions to 64: "
        "torch, cpu from 4.2e+06 on."
    )
    assert calibration.calibration_summary("cpu") == (
        "Measured on this machine, by work: everything torch, cpu from 4.2e+06 on."
    )


def test_the_explanation_names_other_devices_as_without_thresholds() -> None:
    before = choice()["rejected"]
    threshold_cache.write("cpu", everywhere({"cpu": 0.0}))
    calibration._looked.clear()
    calibration.use_cached("cpu")
    assert str(choice()["calibration"]).startswith("Measured")
    assert choice()["rejected"] == before


def test_each_class_of_head_dimensions_has_its_own_threshold() -> None:
    thresholds = everywhere({"cpu": 0.0})
    thresholds["forward"]["float32"][512] = {"cpu": NEVER}
    threshold_cache.write("cpu", thresholds)
    calibration.use_cached("cpu")
    assert calibration.calibration_summary("cpu") == (
        "Measured on this machine, by work: float32 forward D<=512 torch at every size; "
        "everything else cpu at every size."
    )
    assert choice(dim=64)["backend"] == "cpu"
    assert choice(dim=65)["backend"] == "stock"


def test_skipping_leaves_the_built_in_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    threshold_cache.write("cpu", everywhere({"cpu": NEVER}))
    monkeypatch.setenv("MPS_SDPA_SKIP_CALIBRATION", "1")
    environment.cache_clear()
    calibration.use_cached("cpu")
    assert choice()["backend"] == "cpu"
    assert "MPS_SDPA_SKIP_CALIBRATION" in str(choice()["calibration"])


def measured(monkeypatch: pytest.MonkeyPatch, speedup: float) -> list[str]:
    """Replaces the clock: every point has this speed-up. The list has the back ends measured."""
    asked: list[str] = []

    def measure(names: Sequence[str], device: str, fallbacks: list[str]) -> list[Point]:
        asked.extend(names)
        return [point for name in names for point in points(*[speedup] * 3, backend=name)]

    monkeypatch.setattr(calibration, "_measure", measure)
    monkeypatch.setattr(calibration, "_work", lambda length, dim: 1.0)
    return asked


def test_calibrate_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, 0.5)
    assert calibration.calibrate("cpu")["forward"]["float32"][64] == {"cpu": NEVER}
    assert calibration.calibrate("cpu")["forward"]["float32"][64] == {"cpu": NEVER}
    assert asked == ["cpu"]
    assert choice()["backend"] == "stock"
    measured(monkeypatch, 2.0)
    assert calibration.calibrate("cpu", force=True)["forward"]["float32"][64] == {"cpu": 0.0}
    assert choice()["backend"] == "cpu"


def test_what_is_measured_on_a_busy_machine_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measured(monkeypatch, 0.5)
    monkeypatch.setattr("mps_sdpa.harness.environment.Watch._others", lambda _: 0.6)
    assert calibration.calibrate("cpu") == everywhere({"cpu": 0.0})
    assert threshold_cache.read("cpu") is None
    assert choice()["backend"] == "cpu"
    assert "Other programs used 60% of the CPU" in str(choice()["calibration"])
    assert "nothing was kept" in caplog.text


def test_slower_must_be_seen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([{"metal": 0.5, "mpsgraph": 3.0}, {"metal": 2.0, "mpsgraph": 2.5}])
    monkeypatch.setitem(calibration._LENGTHS, "cpu", (16,))
    monkeypatch.setattr(calibration, "_DIMS", (64,))
    monkeypatch.setattr(calibration, "MEASURED", ("float32",))
    monkeypatch.setattr(calibration, "PASSES", ("forward",))

    def time(names: Sequence[str], *_: object) -> list[Point]:
        speeds = next(rounds)
        return [point for name in names for point in points(speeds[name], backend=name)]

    monkeypatch.setattr(calibration, "_time", time)
    found = calibration._measure(["metal", "mpsgraph"], "cpu", [])
    assert {point.backend: point.speedup for point in found} == {"metal": 2.0, "mpsgraph": 3.0}


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

    def time(self, *_: object) -> list[Point]:
        self.now += self.seconds
        self.measured += 1
        return points(2.0)


@pytest.mark.parametrize(("seconds", "measured"), [(0.01, 60), (0.099, 60), (0.5, 12), (9.0, 1)])
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
        found = list(calibration._measure(["cpu"], "cpu", []))
    assert len(found) == clock.measured == measured
    assert clock.now <= 6.0 or measured == 1
    assert ("its 6 s are spent" in caplog.text) == (measured < 60)


def test_measurements_are_not_the_users_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(names: Sequence[str], device: str, fallbacks: list[str]) -> list[Point]:
        for name in (*names, "stock"):
            mps_sdpa.sdpa_opt(*torch.zeros(3, 1, 2, 8, 8), backend=name)
        stats.record_fallback("a reason")
        assert fallbacks == ["a reason"]
        return []

    monkeypatch.setattr(calibration, "_measure", measure)
    mps_sdpa.sdpa_opt(*torch.zeros(3, 1, 2, 8, 8))
    calibration.calibrate("cpu")
    assert mps_sdpa.get_call_stats() == {"cpu": 1}
    assert mps_sdpa.get_fallback_stats() == {}


def test_the_real_path_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mps_sdpa.harness.environment.Watch._others", lambda _: 0.0)
    monkeypatch.setitem(calibration._LENGTHS, "cpu", (16,))
    monkeypatch.setattr(calibration.time, "monotonic", lambda: 0.0)  # the budget is never spent
    found = calibration.calibrate("cpu")
    assert set(found) == set(PASSES)
    measured = threshold_cache.read_points("cpu")
    assert len(measured) == 12
    assert all(0 < point.low <= point.speedup <= point.high for point in measured)
    assert {point.backend for point in measured} == {"cpu"}
    assert {point.work for point in measured} == {4.0 * 16 * 16 * dim for dim in (64, 128)}


def _runs(name: str) -> bool:
    """Whether a run of a back end would be timed as its own."""
    with stats.uncounted() as fallbacks:
        return calibration._is_its_own(
            name,
            lambda: mps_sdpa.sdpa_opt(*torch.zeros(3, 1, 2, 8, 8), backend=name),
            fallbacks,
        )


def test_a_back_end_that_fails_or_leaves_the_call_to_another_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert _runs("cpu")
    with apple_gpu() as played:
        assert _runs("metal")
        played.compile_error = "it does not compile"
        mps._compiled.cache_clear()
        assert not _runs("metal")
    assert not _runs("mpsgraph")
    assert "calibration leaves out mpsgraph" in caplog.text


# --- an Apple GPU: by itself, at the first call ---


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with apple_gpu() as played:
        calibration._prepared.clear()  # so that a first call measures
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
    assert "torch at every size" in str(choice(8)["calibration"])


def test_a_backward_pass_stays_where_its_forward_pass_was(gpu: Gpu) -> None:
    thresholds = everywhere({"metal": 0.0})
    thresholds["train"] = everywhere({"cpu": 0.0, "metal": 4.0 * 8 * 8 * 8})["train"]
    threshold_cache.write("mps", thresholds)
    q = torch.randn(1, 2, 8, 8, requires_grad=True)
    call()
    mps_sdpa.sdpa_opt(q, q, q).sum().backward()
    assert mps_sdpa.get_call_stats() == {"metal": 1, "stock": 1}
    longer = torch.randn(1, 4, 8, 8, requires_grad=True)
    mps_sdpa.sdpa_opt(longer, longer, longer).sum().backward()
    assert mps_sdpa.get_call_stats() == {"metal": 2, "stock": 1}
    assert longer.grad is not None


def test_explain_takes_up_what_is_kept_for_a_gpu_and_measures_nothing(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch, 2.0)
    threshold_cache.write("mps", everywhere({"metal": 1e9}))
    found = mps_sdpa.explain(*torch.zeros(3, 1, 2, 8, 8), quiet=True)
    assert found["backend"] == "stock"
    assert found["rejected"]["metal"] == (
        "Calibration found others faster below a work of 1e+09; this problem's is 1e+03."
    )
    assert asked == []


def test_what_is_kept_for_a_gpu_is_not_measured_again(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    threshold_cache.write("mps", everywhere({"cpu": NEVER}))
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
    def measure(*_: object) -> list[Point]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(calibration, "_measure", measure)
    call()
    assert "calibration failed, so the built-in order serves: no memory" in caplog.text
    assert mps_sdpa.get_call_stats() == {"metal": 1}


def test_nothing_is_measured_at_import() -> None:
    program = "import mps_sdpa, sys; sys.exit('mps_sdpa.harness.timing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
