# SPDX-License-Identifier: MIT
"""One self-contained HTML page from one or two benchmark documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from mps_sdpa.harness import svg
from mps_sdpa.harness.benchmark import conclusion
from mps_sdpa.harness.cases import LONG_NAMES

Document = dict[str, Any]

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --page: #fff;
  --a: #2563a8; --b: #c2701d; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 46rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p.lead { font-size: 1.1rem; } p, li { overflow-wrap: anywhere; } .soft { color: var(--soft); }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif;
  fill: var(--soft); } .grid { stroke: var(--line); } .reference { stroke: var(--ink);
  stroke-dasharray: 4 3; } .error { stroke: var(--ink); stroke-width: 2; } .limit { fill: none;
  stroke: var(--ink); stroke-width: 1.5; } .s0 { fill: var(--a); } .s1 { fill: var(--b); }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border-radius: 2px; }
.k0 { background: var(--a); } .k1 { background: var(--b); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; white-space: normal; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; }
  section { break-inside: avoid; } .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(documents: list[Document]) -> str:
    """The whole page. With two documents every chart shows both, case by case."""
    sections: list[tuple[str, Callable[[list[Document]], str]]] = [
        ("Environment", _environment),
        ("Speed-up", _speedups),
        ("Against the machine's peak", _roofline),
        ("Peak memory", _memory),
        ("Times", _times),
        ("Accuracy", _accuracy),
        ("Calibration", _calibration),
        ("Refused and unavailable", _refusals),
    ]
    body = "".join(
        f"<section><h2>{title}</h2>{draw(documents)}</section>" for title, draw in sections
    )
    lead = "".join(f'<p class="lead">{_key(n)}{_lead(d)}</p>' for n, d in enumerate(documents))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>mps-sdpa benchmark</title><style>{_STYLE}</style></head>"
        f"<body><h1>mps-sdpa benchmark</h1>{lead}{body}</body></html>\n"
    )


def _key(series: int) -> str:
    return f'<span class="key k{series}"></span>'


def _lead(document: Document) -> str:
    plan = document["plan"]
    which = "forward and backward" if plan["train"] else "forward"
    name = f"{document['file']}: " if "file" in document else ""
    return escape(
        f"{name}{plan['candidate']} against {plan['baseline']}, {document['suite']}, {which}, on "
        f"{document['environment']['chip']}: {conclusion(document)}."
    )


def _table(headings: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _environment(documents: list[Document]) -> str:
    names = [name for name in documents[0]["environment"] if name != "notes"]
    rows = [[name, *(d["environment"].get(name, "") for d in documents)] for name in names]
    notes = [note for d in documents for note in [*d["environment"]["notes"], *_row_notes(d)]]
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    table = _table(["", *(d.get("file", "value") for d in documents)], rows)
    return table + (f"<p>Notes of the measurement:</p><ul>{listed}</ul>" if notes else "")


def _row_notes(document: Document) -> list[str]:
    return [f"{row['case_id']}: {note}" for row in document["rows"] for note in row["notes"]]


def _by_case(documents: list[Document]) -> list[tuple[str, list[tuple[int, dict[str, Any]]]]]:
    """Every case of the first document with its rows in all of them."""
    found = []
    for row in documents[0]["rows"]:
        same = [(n, r) for n, d in enumerate(documents) for r in d["rows"] if _same(r, row)]
        found.append((row["case_id"], same))
    return found


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["case_id"] == other["case_id"])


def _speedups(documents: list[Document]) -> str:
    rows = [
        (case, [svg.Bar(**row["speedup"], series=n) for n, row in same])
        for case, same in _by_case(documents)
    ]
    baseline = escape(documents[0]["plan"]["baseline"])
    text = f"<p>{baseline}'s time over ours; black: the 95 % interval; dashed: equally fast.</p>"
    return text + svg.bars(rows, "times as fast", reference=1.0)


def _roofline(documents: list[Document]) -> str:
    marks, lines = [], []
    for n, document in enumerate(documents):
        rows, peaks = document["rows"], document["peaks"]
        marks += [
            svg.Mark(r["intensity"], r["gflops"], f"{r['case_id']}: {r['peak_share']:.0%}", n)
            for r in rows
        ]
        low = min(row["intensity"] for row in rows) / 2
        high = max(row["intensity"] for row in rows) * 2
        dtypes = sorted({row["dtype"] for row in rows})
        lines += [_roof(peaks, dtype, low, high) for dtype in dtypes]
    text = (
        "<p>Each point is a case; the lines are the most that reading memory (rising) and the "
        "arithmetic of each dtype (flat) allow, measured in the same run.</p>"
    )
    return text + svg.plot(marks, lines, ("arithmetic intensity, operations a byte", "GFLOP/s"))


def _roof(peaks: dict[str, Any], dtype: str, low: float, high: float) -> list[tuple[float, float]]:
    top, bandwidth = peaks["flops"][LONG_NAMES[dtype]] / 1e9, peaks["bandwidth"] / 1e9
    ridge = min(max(top / bandwidth, low), high)
    return [(x, min(top, bandwidth * x)) for x in (low, ridge, high)]


def _memory(documents: list[Document]) -> str:
    rows = []
    for case, same in _by_case(documents):
        sizes = [r for _, r in same if r["candidate_bytes"] is not None]
        group = [_plain(r["candidate_bytes"], 0) for r in sizes]
        group += [_plain(r["baseline_bytes"], 1) for r in sizes]
        rows.append((case, group))
    ours, other = (escape(documents[0]["plan"][side]) for side in ("candidate", "baseline"))
    text = f"<p>The rise of memory during one call: {_key(0)}{ours} {_key(1)}{other}</p>"
    return text + svg.bars(rows, "MB", reference=None)


def _plain(size: int, series: int) -> svg.Bar:
    value = size / 2**20
    return svg.Bar(value, value, value, series)


def _times(documents: list[Document]) -> str:
    rows = [
        [
            row["case_id"],
            f"{row['candidate_ms']:.3f} ms",
            f"{row['baseline_ms']:.3f} ms",
            f"{row['speedup']['value']:.2f}",
            row["verdict"],
            f"{row['peak_share']:.0%}",
            f"{row['baseline_peak_share']:.0%}",
        ]
        for document in documents
        for row in document["rows"]
    ]
    plan = documents[0]["plan"]
    ours, other = plan["candidate"], plan["baseline"]
    return _table(
        ["case", ours, other, "speed-up", "verdict", f"{ours}: peak", f"{other}: peak"], rows
    )


def _accuracy(documents: list[Document]) -> str:
    rows = [
        [row["case_id"], _error(row["candidate_error"]), _error(row["baseline_error"])]
        for row in documents[0]["rows"]
    ]
    plan = documents[0]["plan"]
    text = "<p>The largest difference of the output from double precision.</p>"
    return text + _table(["case", plan["candidate"], plan["baseline"]], rows)


def _error(error: float | None) -> str:
    return "not compared" if error is None else f"{error:.1e}"


def _calibration(documents: list[Document]) -> str:
    known = documents[0]["calibration"]
    text = f"<p>{escape(known['summary'])}</p>"
    if not known["points"]:
        return text
    marks = [
        svg.Mark(p["work"], p["speedup"], f"{p['dtype']} {p['which']}", int(p["which"] == "train"))
        for p in known["points"]
    ]
    works = [point["work"] for point in known["points"]]
    even = [(min(works), 1.0), (max(works), 1.0)]
    chosen = [work for work in known["crossovers"] if min(works) <= work <= max(works)]
    speeds = [point["speedup"] for point in known["points"]]
    lines = [even, *([(work, min(speeds)), (work, max(speeds))] for work in chosen)]
    legend = (
        f"<p>{_key(0)}forward {_key(1)}train; flat: equally fast; upright: the chosen "
        "crossovers.</p>"
    )
    return text + legend + svg.plot(marks, lines, ("work", "times as fast as torch"))


def _refusals(documents: list[Document]) -> str:
    rows = [
        [name, reason] for document in documents[:1] for name, reason in document["refused"].items()
    ]
    return _table(["", "reason"], rows) if rows else "<p>Nothing was refused.</p>"
