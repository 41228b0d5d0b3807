# SPDX-License-Identifier: MIT
"""The dated file of one machine: as JSON for machines and as Markdown for people.

A run adds its rows to the file of the same day and machine; a row that is measured again replaces
the older one. So a long table may be measured in pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mps_sdpa import crossovers
from mps_sdpa.harness.timing import Interval, weighted_geomean

Row = dict[str, Any]

#: The baselines that are torch's own: its function, or its operators where that lacks something.
_TORCHS = ("torch", "composite")

_KEY = ("suite", "case", "which", "threads", "baseline", "backend", "instruction_set")
_HEADINGS = ("case", "pass", "ours ms", "peer", "its ms", "ratio [95 %]", "share of peak", "rate")


def path_for(folder: Path, machine: dict[str, Any], suffix: str = "") -> Path:
    chip = re.sub(r"[^a-z0-9]+", "-", machine["chip"].lower()).strip("-")
    return folder / f"{machine['date']}-{chip}-{machine['cores']}-cores{suffix}.json"


def merge(path: Path, machine: dict[str, Any], rows: list[Row], memory: list[Row]) -> Row:
    """What the file holds with these rows added; writes nothing."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    every = {_key(row): row for row in [*kept.get("rows", []), *rows]}
    return {
        "machine": machine,
        "rows": list(every.values()),
        "means": means(every.values()),
        "memory": memory or kept.get("memory", []),
    }


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)


def means(rows: Iterable[Row]) -> list[Row]:
    """The weighted geometric mean of the ratio over the realistic suite, by pass, threads and
    back end."""
    names = ("which", "threads", "backend")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["suite"] == "realistic":
            groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        {**dict(zip(names, key, strict=True)), "cases": len(group), "ratio": _mean(group)}
        for key, group in groups.items()
    ]


def _mean(rows: list[Row]) -> dict[str, float]:
    ratios = [np.asarray(row["ratios"]) for row in rows]
    slower: Interval = weighted_geomean(ratios, [row["weight"] for row in rows])
    return {"value": 1 / slower.value, "low": 1 / slower.high, "high": 1 / slower.low}


def write(path: Path, document: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(document), encoding="utf-8")


def is_slower(row: Row) -> bool:
    """Whether it was measured to be slower than torch by more than 3 %; an interval that spans 1
    says nothing."""
    ratio = row["ratio"]
    return row["baseline"] in _TORCHS and crossovers.is_slower(ratio["value"], ratio["high"])


def verdicts(rows: Iterable[Row]) -> list[str]:
    """For each back end one sentence: which of these rows are slower than torch, if any."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["baseline"] in _TORCHS:
            groups.setdefault(row["backend"], []).append(row)
    return [_verdict(backend, group) for backend, group in groups.items()]


def _verdict(backend: str, rows: list[Row]) -> str:
    slow = [
        f"{row['case']} {row['which']} on {row['threads']} threads {_interval(row['ratio'])}"
        for row in rows
        if is_slower(row)
    ]
    found = "none is" if not slow else "1 is" if len(slow) == 1 else f"{len(slow)} are"
    text = f"Of {len(rows)} rows with back end {backend} {found} slower than torch by more than 3 %"
    return f"{text}: {'; '.join(slow)}." if slow else f"{text}."


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def cells(row: Row) -> tuple[str, ...]:
    """A row in the order of _HEADINGS."""
    ratio, ours, share = row["ratio"], row["ours_ms"], row["share"]
    marks = [row["backend"]] * (row["backend"] != "cpu") + ["avx2"] * (
        row["instruction_set"] == "avx2"
    )
    name = row["case"] + (f" ({', '.join(marks)})" if marks else "")
    return (
        name,
        row["which"],
        f"{ours['median']:.4g}",
        row["baseline"],
        f"{row['baseline_ms']['median']:.4g}",
        _interval(ratio),
        f"{share['median']:.0%} (best {share['best']:.0%})",
        f"{row['rate']:.3g} {row['unit']}",
    )


def line(row: Row) -> str:
    """A row for the terminal."""
    name, which, ours, peer, theirs, ratio, share, rate = cells(row)
    text = (
        f"{name:30} {which:8} {row['threads']:2}t {ours:>8} ms  {peer:11} {theirs:>8} ms  "
        f"{ratio:>18}  {share:>16}  {rate:>13}  {'; '.join(row['notes'])}"
    )
    return text.rstrip()


def markdown(document: Row) -> str:
    machine = document["machine"]
    lines = [
        f"# {machine['chip']}, {machine['cores']} cores, {machine['date']}",
        "",
        f"{machine['os']}, {machine['memory_gb']} GB, Python {machine['python']}, torch "
        f"{machine['torch']}, mps-sdpa {machine['mps_sdpa']}. Medians of interleaved pairs; the "
        "share is that of multiply-adds on registers, or of the bandwidth of reading memory where "
        "one query is decoded, measured just before each row.",
    ]
    for threads in sorted({row["threads"] for row in document["rows"]}):
        rows = [row for row in document["rows"] if row["threads"] == threads]
        lines += ["", f"## {threads} thread{'s' if threads > 1 else ''}", "", _peaks(rows), ""]
        lines += _table(rows)
    return "\n".join([*lines, *summary(document), ""])


def _peaks(rows: list[Row]) -> str:
    def median(values: list[float]) -> float:
        return float(np.median(values)) / 1e9

    single = median([row["peaks"]["flops"]["float32"] for row in rows])
    half = median([row["peaks"]["flops"]["bfloat16"] for row in rows])
    bandwidth = median([row["peaks"]["bandwidth"] for row in rows])
    return (
        f"Peaks: float32 {single:.0f} GFLOP/s, bfloat16 {half:.0f} GFLOP/s, reading "
        f"{bandwidth:.1f} GB/s."
    )


def _table(rows: list[Row]) -> list[str]:
    body = [f"| {' | '.join(cells(row))} |" for row in rows]
    return [f"| {' | '.join(_HEADINGS)} |", "|---" * len(_HEADINGS) + "|", *body]


def summary(document: Row) -> list[str]:
    lines = []
    for mean in document["means"]:
        ratio = mean["ratio"]
        lines.append(
            f"Realistic suite, {mean['which']}, {mean['threads']} threads, back end "
            f"{mean['backend']}, {mean['cases']} cases: "
            f"weighted geometric mean {_interval(ratio)} times torch."
        )
    lines += verdicts(document["rows"])
    lines += [
        f"{found['text']}: resident memory grows by {found['bytes'] / 2**20:.0f} MB "
        f"({found['backend']})."
        for found in document["memory"]
    ]
    return ["", *(f"- {line}" for line in lines)] if lines else []
