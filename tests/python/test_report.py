# SPDX-License-Identifier: MIT
"""The HTML report: whole, self-contained, and with every figure of its documents in it."""

from __future__ import annotations

import copy
import html
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from browser import browse, print_without_backgrounds

from mps_sdpa import cli
from mps_sdpa.cli_options import finite
from mps_sdpa.crossovers import Point, everywhere
from mps_sdpa.harness import report, svg

_VOID = {"meta"}


class Checker(html.parser.HTMLParser):
    """Collects text and shapes; fails on tags that do not balance or point elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}, "the page loads something"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert "nan" not in str(value) and "inf" not in str(value), (tag, name, value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real measurement of two short cases."""
    path = tmp_path_factory.mktemp("report") / "result.json"
    words = ["benchmark", "--suite", "short", "--limit", "2", "--pairs", "3", "--out", str(path)]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert not ended.value.code
    return path


@pytest.fixture
def document(saved: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(saved.read_text())
    return content


def test_page_shows_every_section_and_figure(document: dict[str, Any]) -> None:
    found = read(report.page([document]))
    for title in ("Environment", "Speed-up", "peak", "memory", "Accuracy", "Calibration"):
        assert title in found.text
    for row in document["rows"]:
        assert row["case_id"] in found.text
        assert f"{row['candidate_ms']:.3f}" in found.text
        assert found.text.count(f"{row['speedup']['value']:.2f}") >= 2, "beside the bar and below"
        assert f"{row['candidate_error']:.1e}" in found.text
    for name, sentence in document["refused"].items():
        assert name + sentence in found.text
    assert found.tags.count("svg") == 3
    assert found.tags.count("circle") == 2


def test_two_documents_stand_side_by_side(document: dict[str, Any]) -> None:
    document["rows"][0]["speedup"] = {"value": 2.0, "low": 1.9, "high": 2.1}
    slower = copy.deepcopy(document)
    slower["rows"][0]["speedup"] = {"value": 0.123, "low": 0.12, "high": 0.13}
    found = read(report.page([document, slower]))
    assert "0.123 [0.12, 0.13]" in found.text
    assert found.tags.count("circle") == 4
    assert "0.12 [0.12, 0.13]" in found.text and "slower" in found.text
    assert "result 1: " in found.text and "(result 2)" in found.text


def test_a_case_of_one_document_alone_is_shown_too(document: dict[str, Any]) -> None:
    other = copy.deepcopy(document)
    other["rows"][1]["case_id"] = "another case"
    found = read(report.page([document, other]))
    assert found.text.count("another case") >= 3
    assert "not compared" in found.text
    other["rows"][0]["case_id"] = "a third one"
    assert "no case in common" in read(report.page([document, other])).text


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1.0, 1.2), (1.3, 1.4), "faster"),
        ((1.0, 1.2), (1.1, 1.4), "undecided"),
        ((1.0, 1.2), (0.7, 0.9), "slower"),
    ],
)
def test_a_change_must_be_beyond_doubt(
    before: tuple[float, float], after: tuple[float, float], expected: str
) -> None:
    ends = [{"low": low, "high": high} for low, high in (before, after)]
    assert report._change(*ends) == expected


def test_calibration_is_drawn_where_it_was_measured(document: dict[str, Any]) -> None:
    point = Point("cpu", "train", "float32", 64, 1e5, 1.5, 1.4, 1.6)
    slow = Point("cpu", "train", "float32", 64, 1e6, 0.8, 0.7, 0.9)
    thresholds = everywhere({"cpu": 1e6})
    thresholds["train"]["float32"][512] = {"cpu": math.inf}
    points = [asdict(point), asdict(slow), asdict(replace(point, which="forward"))]
    document["calibration"].update(points=points, ladders=thresholds)
    before = read(report.page([{**document, "calibration": {"summary": "", "points": []}}]))
    found = read(report.page([json.loads(json.dumps(finite(document)))]))
    assert found.tags.count("svg") == 3 + 2, "one for each pass and dtype"
    assert found.tags.count("circle") == before.tags.count("circle") + 3
    assert found.tags.count("polyline") == before.tags.count("polyline") + 3 + 2, (
        "curve, even, crossover"
    )
    assert "crossovers" in found.text
    read(report.page([document]))


def test_text_is_escaped(document: dict[str, Any]) -> None:
    document["rows"][0]["case_id"] = "<b>&"
    document["environment"]["chip"] = "<script>"
    page = report.page([document])
    assert "<script>" not in page and "<b>" not in page
    read(page)


def test_axis_maps_ends_and_middle() -> None:
    plain = svg.Axis(0, 10, 100, 200)
    assert [plain.at(value) for value in (0, 5, 10, 99)] == [100, 150, 200, 200]
    assert plain.ticks() == [0, 2, 4, 6, 8, 10]
    logarithmic = svg.Axis(1, 100, 0, 10, logarithmic=True)
    assert logarithmic.at(10) == pytest.approx(5)
    assert logarithmic.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert svg.Axis(1, 1000, 0, 10, logarithmic=True).ticks() == [1, 10, 100, 1000]


def test_bars_of_ratios_start_at_one_and_say_their_value() -> None:
    group = [svg.Bar(4.0, 3.0, 5.0, label="4.00"), svg.Bar(0.25, 0.2, 0.3, 1, "0.25")]
    drawn = svg.bars([("case", group)], "times as fast", reference=1.0)
    places = [
        (float(x), float(width))
        for x, width in re.findall(r'<rect .*?x="(.*?)".*?width="(.*?)"', drawn)
    ]
    (faster, slower), widths = [x for x, _ in places], [width for _, width in places]
    assert faster == pytest.approx(slower + widths[1], abs=0.2), "both touch the line at one"
    assert widths[0] == pytest.approx(widths[1], abs=0.2), "as much faster as slower"
    assert ">4.00<" in drawn and ">0.25<" in drawn


def test_ticks_of_large_numbers_are_plain() -> None:
    drawn = svg.bars([("case", [svg.Bar(5300, 5300, 5300)])], "MB", reference=None)
    assert ">2000<" in drawn and "e+" not in drawn


def test_results_of_one_name_are_told_apart(document: dict[str, Any]) -> None:
    found = read(report.page([{**document, "file": "a.json"}, {**document, "file": "a.json"}]))
    assert "a.json 1: auto" in found.text and "a.json 2: auto" in found.text


def test_a_cold_start_is_shown_if_it_was_measured(document: dict[str, Any]) -> None:
    assert "Cold start" not in read(report.page([document])).text
    document["rows"][0]["cold"] = {"candidate": {"import_ms": 912.4, "first_call_ms": 3.21}}
    found = read(report.page([document]))
    assert "Cold start" in found.text and "9123.2" in found.text


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return int(ended.value.code or 0), capsys.readouterr().err


def test_command(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert run(capsys, "report", saved, saved, "--out", out) == (0, "")
    assert "result.json" in read(out.read_text()).text


def test_a_name_that_the_terminal_cannot_show_is_no_error(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "r\u00e9sum\u00e9.html"
    words = [sys.executable, "-m", "mps_sdpa", "report", str(saved), "--out", str(out)]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, env=ascii_only, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {tmp_path}/r?sum?.html\n" and out.exists()


def test_command_as_json(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = tmp_path / "report.html"
    with pytest.raises(SystemExit):
        cli.main(["report", str(saved), "--out", str(out), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(out) and out.exists()
    (result,) = found["results"]
    assert result["n_cases"] == 2
    assert "weighted geometric mean of the speed-up" in result["conclusion"]


def test_command_refuses_what_it_did_not_write(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    complete = json.loads(saved.read_text())
    contents = ["null", "[]", '{"schema": 2}', '{"schema": 2, "rows": [1]}']
    contents += [json.dumps({**complete, part: None}) for part in ("peaks", "plan", "refused")]
    for content in contents:
        other.write_text(content)
        code, text = run(capsys, "report", other)
        assert code == 2
        assert text == "Error: 'other.json' is not a result that `mps-sdpa benchmark --out` wrote\n"
    code, text = run(capsys, "report", saved, saved, saved)
    assert "one or two results make a report, but got 3" in text


needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="there is no chromium to draw with"
)

_BAR = (37, 99, 168)  # the first series


def long_report(document: dict[str, Any]) -> str:
    """With names and notes as long as they get."""
    row = document["rows"][0]
    row["case_id"] = "bf16 B16 H32/8 L16384x16384 D128 per-head additive mask, causal, window 4096"
    row["notes"] = ["other programs used 12% of the CPU"]
    document["refused"]["mpsgraph"] = "a/very/long/path/without/a/single/space" * 5
    return report.page([document, copy.deepcopy(document)])


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_browser_draws_it(document: dict[str, Any], tmp_path: Path, width: int) -> None:
    from PIL import Image

    (tmp_path / "page.html").write_text(report.page([document]))
    shot = tmp_path / "shot.png"
    browse(f"--screenshot={shot}", f"--window-size={width},3000", str(tmp_path / "page.html"))
    colours = Image.open(shot).convert("RGB").getcolors(2**24)
    assert colours is not None
    assert _BAR in {colour for _, colour in colours}, "no bar of the first series"


@needs_browser
@pytest.mark.parametrize(("width", "medium"), [(320, "screen"), (1200, "screen"), (718, "print")])
def test_nothing_sticks_out(
    document: dict[str, Any], tmp_path: Path, width: int, medium: str
) -> None:
    """A browser's window is never as narrow as a phone, a frame inside it is; 718 is the width of a
    printed A4 page."""
    content = html.escape(long_report(document).replace(f"@media {medium} ", "@media all "))
    (tmp_path / "frame.html").write_text(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{content}"></iframe>'
        "<script>onload = () => {"
        "const page = document.querySelector('iframe').contentDocument.documentElement;"
        "document.body.append(`width=${page.clientWidth}/${page.scrollWidth};`); }</script>"
    )
    dumped = browse("--dump-dom", str(tmp_path / "frame.html"))
    found = re.search(r"width=(\d+)/(\d+);", dumped)
    assert found is not None
    inside, needed = map(int, found.groups())
    assert width - 20 <= inside <= width
    assert needed == inside, "the page must be scrolled sideways"


def colours_filled(pdf: bytes) -> set[tuple[int, ...]]:
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    drawn = b"".join(_inflated(stream) for stream in streams)
    colours = re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg", drawn)
    return {tuple(round(255 * float(part)) for part in each) for each in colours}


@needs_browser
def test_it_prints(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(long_report(document))
    browse(f"--print-to-pdf={tmp_path / 'page.pdf'}", str(tmp_path / "page.html"))
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert 2 <= pdf.count(b"/Type /Page\n") <= 7
    assert _BAR in colours_filled(pdf)


@needs_browser
@pytest.mark.parametrize("exact", [True, False], ids=["as it is", "without asking for colours"])
def test_the_keys_of_charts_print(exact: bool, document: dict[str, Any], tmp_path: Path) -> None:
    """They are backgrounds, which are not printed unless the page asks for exact colours."""
    page = re.sub(r"<svg.*?</svg>", "", report.page([document]), flags=re.DOTALL)
    file = tmp_path / "page.html"
    file.write_text(page if exact else page.replace("print-color-adjust", "nothing"))
    assert (_BAR in colours_filled(print_without_backgrounds(file))) == exact


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""  # not everything is compressed that way
