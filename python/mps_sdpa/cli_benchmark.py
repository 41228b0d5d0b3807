# SPDX-License-Identifier: MIT
"""`mps-sdpa benchmark` and `mps-sdpa report`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from mps_sdpa import cli_options as shared

_CSV_COLUMNS = [
    "case_id",
    "paired_geomean_ratio",
    "cold_ms",
    "delta_driver_bytes",
    "delta_current_bytes",
    "weight",
    "note",
    "candidate_ms",
    "baseline_ms",
    "speedup",
    "speedup_low",
    "speedup_high",
    "peak_share",
    "baseline_bytes",
    "dtype",
]


@click.command(
    short_help="time a back end against torch",
    epilog="\b\nExamples:\n  mps-sdpa benchmark --suite short\n"
    "  mps-sdpa benchmark --suite models --pass train --limit 3 --out result.html",
)
@shared.backend_option("--backend", "auto", "What to time.")
@shared.backend_option("--baseline", "stock", "What to compare with.")
@shared.device_option
@shared.suite_option
@shared.dtype_option
@click.option(
    "--pass",
    "which",
    type=click.Choice(["fwd", "train"]),
    default="fwd",
    show_default=True,
    help="Forward alone, or forward and backward.",
)
@shared.threads_option
@click.option("--pairs", type=click.IntRange(min=3), help="Pairs a case. [default: 5 to 31]")
@shared.limit_option
@click.option("--measure-cold", is_flag=True, help="Also time import and first call.")
@shared.json_option
@click.option(
    "--out",
    type=shared.writable_file(".csv", ".json", ".html"),
    help="Write the result as CSV, JSON or HTML, by the suffix.",
)
def benchmark(
    backend: str,
    baseline: str,
    device: str,
    suite: str,
    dtype: str | None,
    which: str,
    threads: int | None,
    pairs: int | None,
    limit: int | None,
    measure_cold: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Times a back end against another in interleaved pairs, case by case."""
    from mps_sdpa.harness import benchmark, cases, environment, peaks, progress

    shared.set_threads(threads)
    plan = benchmark.Plan(
        candidate=backend,
        baseline=baseline,
        device=device,
        train=which == "train",
        pairs=pairs,
        cold=measure_cold,
        accuracy=out is not None and out.suffix != ".csv",
    )
    chosen = cases.suite(suite, dtype=dtype, limit=limit)
    if not chosen:
        raise click.UsageError("the suite has no case of these flags")
    machine = {**environment.describe_machine(), "notes": environment.load_notes()}
    limits = peaks.measure_peaks(device)
    rows, refused = [], {}
    for case in progress.track(chosen, lambda case: case.name):
        if reason := benchmark.refusal(case, plan):
            refused[case.name] = reason
        else:
            rows.append(benchmark.measure(case, plan, limits))
    if not rows:
        raise click.UsageError(f"every case is refused: {next(iter(refused.values()))}")
    document = benchmark.document(rows, plan, suite, machine, limits, refused)
    if out is not None:
        _write(document, out)
    if shared.for_people(as_json):
        show(document)
    else:
        shared.print_json(shared.finite(document if as_json else _head(document)))


def _head(document: dict[str, Any]) -> dict[str, Any]:
    """What a script reads from stdout: everything but the single measurements."""
    return {key: value for key, value in document.items() if key != "rows"}


def _write(document: dict[str, Any], out: Path) -> None:
    if out.suffix == ".json":
        text = json.dumps(shared.finite(document), indent=1, default=str)
        out.write_text(text, encoding="utf-8")
    elif out.suffix == ".html":
        from mps_sdpa.harness import report

        out.write_text(report.page([document]), encoding="utf-8")
    else:
        _write_csv(document, out)


def _write_csv(document: dict[str, Any], out: Path) -> None:
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _CSV_COLUMNS)
        writer.writeheader()
        for row in document["rows"]:
            speedup = row["speedup"]
            writer.writerow(
                {
                    **{name: row[name] for name in _CSV_COLUMNS if name in row},
                    "paired_geomean_ratio": 1 / speedup["value"],
                    "delta_driver_bytes": row["candidate_bytes"],
                    "delta_current_bytes": row["candidate_bytes"],
                    "note": "; ".join(row["notes"]),
                    "speedup": speedup["value"],
                    "speedup_low": speedup["low"],
                    "speedup_high": speedup["high"],
                }
            )


def show(document: dict[str, Any]) -> None:
    """The table of a benchmark."""
    from mps_sdpa.harness import benchmark

    console, plan = shared.console(), document["plan"]
    machine, peaks = document["environment"], document["peaks"]
    table = Table(title=f"{plan['candidate']} against {plan['baseline']}", title_justify="left")
    table.add_column("case", overflow="fold", min_width=16)
    for heading in (
        plan["candidate"],
        plan["baseline"],
        "speed-up [95 %]",
        "peak",
        "memory of both",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["rows"]:
        table.add_row(*_cells(row))
    console.print(
        f"{machine['chip']}, {machine['threads']} threads, torch {machine['torch']}; peaks: fp32 "
        f"{peaks['flops']['float32'] / 1e9:.0f} GFLOP/s, bf16 "
        f"{peaks['flops']['bfloat16'] / 1e9:.0f} GFLOP/s, reading "
        f"{peaks['bandwidth'] / 1e9:.1f} GB/s"
    )
    shared.print_table(table, console)
    for row in document["rows"]:
        if row["cold"]:
            console.print(_cold_sentence(row, plan))
    for note in [*machine["notes"], *_row_notes(document)]:
        console.print(f"[yellow]note[/] {note}")
    console.print(benchmark.conclusion(document))


def _cold_sentence(row: dict[str, Any], plan: dict[str, Any]) -> str:
    sides = [
        f"{plan[side]} {cold['import_ms']:.0f} + {cold['first_call_ms']:.1f} ms"
        for side, cold in row["cold"].items()
    ]
    return f"cold start of {row['case_id']}, import + first call: {', '.join(sides)}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    speedup = row["speedup"]
    colour = {"faster": "green", "slower": "red", "undecided": "dim"}[row["verdict"]]
    return (
        row["case_id"],
        f"{row['candidate_ms']:.3f} ms",
        f"{row['baseline_ms']:.3f} ms",
        f"[{colour}]{speedup['value']:.2f}[/] [{speedup['low']:.2f}, {speedup['high']:.2f}]",
        f"{row['peak_share']:.0%}",
        f"{_megabytes(row['candidate_bytes'])} / {_megabytes(row['baseline_bytes'])}",
    )


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f} MB"


def _row_notes(document: dict[str, Any]) -> list[str]:
    return [f"{row['case_id']}: {note}" for row in document["rows"] for note in row["notes"]]


@click.command(
    short_help="one HTML page from saved benchmarks",
    epilog="\b\nExamples:\n  mps-sdpa report result.json\n"
    "  mps-sdpa report before.json after.json --out report.html",
)
@click.argument(
    "results",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--out", type=shared.writable_file(".html"), default="report.html", show_default=True)
@shared.json_option
def report(results: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Draws benchmarks that were saved as JSON as one self-contained HTML page."""
    from mps_sdpa.harness import report
    from mps_sdpa.harness.benchmark import conclusion

    if len(results) > 2:
        raise click.UsageError(f"one or two results make a report, but got {len(results)}")
    documents = [_read(path) for path in results]
    out.write_text(report.page(documents), encoding="utf-8")
    if as_json:
        heads = [{**_head(document), "conclusion": conclusion(document)} for document in documents]
        shared.print_json(shared.finite({"out": str(out), "results": heads}))
    else:
        print(f"wrote {out}")


def _read(path: Path) -> dict[str, Any]:
    from mps_sdpa.harness import report

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] == 2 and document["rows"]:
            report.page([document])
            return {**document, "file": path.name}
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        pass
    raise click.UsageError(f"{path.name!r} is not a result that `mps-sdpa benchmark --out` wrote")
