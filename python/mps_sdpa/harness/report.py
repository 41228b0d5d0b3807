# SPDX-License-Identifier: MIT
"""One self-contained HTML page from one or two benchmark documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Any

from mps_sdpa.crossovers import DIMS
from mps_sdpa.harness import svg
from mps_sdpa.harness.benchmark import conclusion
from mps_sdpa.harness.cases import LONG_NAMES

Document = dict[str, Any]

#: Head dimensions above this have crossovers of their own.
_NARROW = DIMS[0]

#: What is called otherwise than in the result.
_ENVIRONMENT = {"memory_gb": "memory in GB", "mps_sdpa": "mps-sdpa", "os": "system"}

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --page: #fff;
  --a: #2563a8; --b: #c2701d; --c: #4a8a3c; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 46rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p.lead { font-size: 1.1rem; } p, li { overflow-wrap: anywhere; } .soft { color: var(--soft); }
svg { width: 100%; height: auto; display: block; }
svg text { font: 15px system-ui, sans-serif; fill: var(--soft); paint-order: stroke;
  stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--line); } .reference { stroke: var(--ink); stroke-dasharray: 4 3; }
.error { stroke: var(--ink); stroke-width: 2; } .limit { fill: none; stroke-width: 1.5; }
.s0 { fill: var(--a); } .s1 { fill: var(--b); }
.s2 { fill: var(--c); } .even { fill: none; stroke: var(--ink); stroke-dasharray: 4 3; }
.curve { fill: none; stroke-width: 2; } .wide { stroke-dasharray: 8 4; }
.c0 { stroke: var(--a); } .c1 { stroke: var(--b); } .c2 { stroke: var(--c); }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; } figure { margin: 0; break-inside: avoid; } figcaption { font-size: .9rem; }
.panels svg text { font-size: 22px; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border-radius: 2px; }
.k0 { background: var(--a); } .k1 { background: var(--b); } .k2 { background: var(--c); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; white-space: normal; }
.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.words th { text-align: left; } .words td:first-child { overflow-wrap: normal; }
@media (max-width: 34rem) { svg text { font-size: 22px; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; }
  section { break-inside: avoid; } .scroll { overflow: visible; } table { font-size: 9pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(documents: list[Document]) -> str:
    """The whole page. With two documents every chart shows both, case by case."""
    if len(documents) > 1:
        documents = _named_apart(documents)
    sections: list[tuple[str, Callable[[list[Document]], str]]] = [
        ("Environment", _environment),
        ("Speed-up", _speedups),
        *([("Change", _changes)] if len(documents) > 1 else []),
        ("Against the machine's peak", _roofline),
        ("Peak memory", _memory),
        ("Times", _times),
        *([("Cold start", _cold)] if any(_cold_rows(d) for d in documents) else []),
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


def _named_apart(documents: list[Document]) -> list[Document]:
    names = [document.get("file", "result") for document in documents]
    if len(set(names)) < len(names):
        names = [f"{name} {n + 1}" for n, name in enumerate(names)]
    return [{**document, "file": name} for document, name in zip(documents, names, strict=True)]


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
    rows = [
        [_ENVIRONMENT.get(name, name), *(d["environment"].get(name, "") for d in documents)]
        for name in names
    ]
    notes = [
        f"{d['file']}: {note}" if len(documents) > 1 else note
        for d in documents
        for note in [*d["environment"]["notes"], *_row_notes(d)]
    ]
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    table = _table(["", *(d.get("file", "value") for d in documents)], rows)
    return table + (f"<p>Notes of the measurement:</p><ul>{listed}</ul>" if notes else "")


def _row_notes(document: Document) -> list[str]:
    return [f"{row['case_id']}: {note}" for row in document["rows"] for note in row["notes"]]


def _by_case(documents: list[Document]) -> list[tuple[str, list[tuple[int, dict[str, Any]]]]]:
    """Every case, with its rows and the numbers of the documents that they are from."""
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for n, document in enumerate(documents):
        for row in document["rows"]:
            found.setdefault(row["case_id"], []).append((n, row))
    return list(found.items())


def _speedups(documents: list[Document]) -> str:
    rows = [
        (case, [_speedup_bar(row["speedup"], n) for n, row in same])
        for case, same in _by_case(documents)
    ]
    baseline = escape(documents[0]["plan"]["baseline"])
    text = (
        f"<p>{baseline}'s time over ours, on a logarithmic scale; black: the 95 % interval; "
        "dashed: equally fast.</p>"
    )
    return text + svg.bars(rows, "times as fast", reference=1.0)


def _speedup_bar(speedup: dict[str, float], series: int) -> svg.Bar:
    return svg.Bar(**speedup, series=series, label=f"{speedup['value']:.2f}")


def _changes(documents: list[Document]) -> str:
    """How the second result differs from the first, where both have a case."""
    rows = [
        [
            case,
            *(_with_interval(row["speedup"]) for _, row in same),
            f"{same[1][1]['speedup']['value'] / same[0][1]['speedup']['value']:.2f}",
            _change(same[0][1]["speedup"], same[1][1]["speedup"]),
        ]
        for case, same in _by_case(documents)
        if len(same) == len(documents)
    ]
    if not rows:
        return "<p>The two results have no case in common.</p>"
    first, second = (document["file"] for document in documents)
    text = "<p>The speed-up over the baseline; undecided while the intervals overlap.</p>"
    return text + _table(["case", first, second, "second / first", "second is"], rows)


def _with_interval(speedup: dict[str, float]) -> str:
    return f"{speedup['value']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]"


def _change(before: dict[str, float], after: dict[str, float]) -> str:
    if after["low"] > before["high"]:
        return "faster"
    return "slower" if after["high"] < before["low"] else "undecided"


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
        lines += [_roof(peaks, dtype, low, high, n) for dtype in dtypes]
    text = (
        "<p>Each point is a case; the lines are the most that reading memory (rising) and the "
        "arithmetic of each dtype (flat) allow, measured in the same run.</p>"
    )
    return text + svg.plot(marks, lines, ("arithmetic intensity, operations a byte", "GFLOP/s"))


def _roof(peaks: dict[str, Any], dtype: str, low: float, high: float, series: int) -> svg.Line:
    top, bandwidth = peaks["flops"][LONG_NAMES[dtype]] / 1e9, peaks["bandwidth"] / 1e9
    ridge = min(max(top / bandwidth, low), high)
    points = [(x, min(top, bandwidth * x)) for x in (low, ridge, high)]
    return svg.Line(points, f"limit c{series}", "" if series else dtype)


def _memory(documents: list[Document]) -> str:
    rows = []
    other = len(documents)  # the baseline's colour
    for case, same in _by_case(documents):
        sizes = [(n, row) for n, row in same if row["candidate_bytes"] is not None]
        group = [_plain(row["candidate_bytes"], n) for n, row in sizes]
        group += [_plain(row["baseline_bytes"], other) for _, row in sizes[:1]]
        rows.append((case, group))
    keys = [
        f"{_key(n)}{escape(d['plan']['candidate'])} {_in_file(d, documents)}"
        for n, d in enumerate(documents)
    ]
    keys.append(f"{_key(other)}{escape(documents[0]['plan']['baseline'])}")
    text = f"<p>The rise of memory during one call: {' '.join(keys)}</p>"
    return text + svg.bars(rows, "MB", reference=None)


def _in_file(document: Document, documents: list[Document]) -> str:
    return f"({escape(document['file'])})" if len(documents) > 1 else ""


def _plain(size: int, series: int) -> svg.Bar:
    value = size / 2**20
    return svg.Bar(value, value, value, series, f"{value:.1f} MB")


def _times(documents: list[Document]) -> str:
    plan = documents[0]["plan"]
    ours, other = plan["candidate"], plan["baseline"]
    headings = ["case", f"{ours}, ms", f"{other}, ms", "speed-up", f"{ours} is", "of the peak"]
    tables = [_table(headings, map(_time_cells, d["rows"])) for d in documents]
    if len(documents) == 1:
        return tables[0]
    return "".join(
        f"<p>{escape(d['file'])}</p>{table}" for d, table in zip(documents, tables, strict=True)
    )


def _time_cells(row: dict[str, Any]) -> list[str]:
    return [
        row["case_id"],
        f"{row['candidate_ms']:.3f}",
        f"{row['baseline_ms']:.3f}",
        _with_interval(row["speedup"]),
        row["verdict"],
        f"{row['peak_share']:.0%}, {row['baseline_peak_share']:.0%}",
    ]


def _cold(documents: list[Document]) -> str:
    text = "<p>Milliseconds of a fresh process: importing the package, and the first call.</p>"
    headings = ["case", "", "import", "first call"]
    return text + _table(headings, [row for d in documents for row in _cold_rows(d)])


def _cold_rows(document: Document) -> list[list[str]]:
    prefix = f"{document['file']}: " if "file" in document else ""
    return [
        [
            row["case_id"],
            f"{prefix}{document['plan'][side]}",
            f"{cold['import_ms']:.0f}",
            f"{cold['first_call_ms']:.1f}",
        ]
        for row in document["rows"]
        for side, cold in row.get("cold", {}).items()
    ]


def _accuracy(documents: list[Document]) -> str:
    rows = []
    for case, same in _by_case(documents):
        found = dict(same)
        ours = [found[n]["candidate_error"] if n in found else None for n in range(len(documents))]
        rows.append([case, *map(_error, ours), _error(same[0][1]["baseline_error"])])
    names = [f"{d['plan']['candidate']} {_in_file(d, documents)}".strip() for d in documents]
    text = "<p>The largest difference of the output from double precision.</p>"
    return text + _table(["case", *names, documents[0]["plan"]["baseline"]], rows)


def _error(error: float | None) -> str:
    return "not compared" if error is None else f"{error:.1e}"


def _calibration(documents: list[Document]) -> str:
    known = documents[0]["calibration"]
    text = f"<p>{escape(known['summary'])}</p>"
    points = known["points"]
    if not points:
        return text
    names = list(dict.fromkeys(point["backend"] for point in points))
    keys = " ".join(f"{_key(n)}{escape(name)}" for n, name in enumerate(names))
    text += (
        f"<p>{keys}: torch's time over theirs, with its 95 % interval; dashed: head dimensions "
        f"above {_NARROW}; the flat line: equally fast; upright: the chosen crossovers.</p>"
    )
    kinds = dict.fromkeys((point["which"], point["dtype"]) for point in points)
    panels = (_panel(which, dtype, names, known) for which, dtype in kinds)
    return f'{text}<div class="panels">{"".join(panels)}</div>'


def _panel(which: str, dtype: str, names: list[str], known: dict[str, Any]) -> str:
    """The calibration curves of one pass and dtype, and its crossovers."""
    points = [p for p in known["points"] if (p["which"], p["dtype"]) == (which, dtype)]
    works = [point["work"] for point in points]
    low = min([1.0, *(point["low"] for point in points)])
    high = max([1.0, *(point["high"] for point in points)])
    ladders = known["ladders"][which][dtype].values()
    chosen = {work for rungs in ladders for work in rungs.values() if work}
    lines = [svg.Line([(min(works), 1.0), (max(works), 1.0)], "even")]
    lines += [svg.Line([(x, low), (x, high)]) for x in chosen if x <= max(works)]
    lines += [*_curves(points, names)]
    marks = [_calibration_mark(point, names) for point in points]
    drawn = svg.plot(marks, lines, ("work", "times as fast as torch"), height=340)
    return f"<figure><figcaption>{escape(which)}, {escape(dtype)}</figcaption>{drawn}</figure>"


def _curves(points: list[dict[str, Any]], names: list[str]) -> Iterator[svg.Line]:
    for dim in sorted({point["dim"] for point in points}):
        for n, name in enumerate(names):
            own = [p for p in points if (p["backend"], p["dim"]) == (name, dim)]
            place = sorted((point["work"], point["speedup"]) for point in own)
            yield svg.Line(place, f"curve c{n}" + " wide" * (dim > _NARROW))


def _calibration_mark(point: dict[str, Any], names: list[str]) -> svg.Mark:
    return svg.Mark(
        point["work"],
        point["speedup"],
        f"{point['backend']}, D {point['dim']}: {point['speedup']:.2f}",
        names.index(point["backend"]),
        point["low"],
        point["high"],
    )


def _refusals(documents: list[Document]) -> str:
    refused = {name: reason for d in documents for name, reason in d["refused"].items()}
    if not refused:
        return "<p>Nothing was refused.</p>"
    return f'<div class="words">{_table(["", "reason"], refused.items())}</div>'
