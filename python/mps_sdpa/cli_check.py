# SPDX-License-Identifier: MIT
"""`mps-sdpa self-test` and `mps-sdpa correctness`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from mps_sdpa import cli_options as shared

_EXAMPLES = """
\b
Examples:
  mps-sdpa correctness --suite realistic --limit 4
  mps-sdpa correctness --suite correctness --backend cpu --out result.json
"""


@click.command("self-test", short_help="is this installation right?")
@shared.device_option
@shared.json_option
@click.option("--out", type=shared.writable_file(".json"), help="Write everything to this file.")
def self_test(device: str, as_json: bool, out: Path | None) -> int:
    """Checks every dtype against double precision, forward and backward, and times one call."""
    from mps_sdpa.harness import self_check

    found = self_check.run(device)
    if out is not None:
        out.write_text(json.dumps(shared.finite(found), indent=1, default=str), encoding="utf-8")
    if shared.for_people(as_json):
        _show_self_test(found)
    else:
        shared.print_json(found)
    return 0 if found["status"] == "pass" else 1


def _show_self_test(found: dict[str, Any]) -> None:
    console, env = shared.console(), found["env"]
    console.print(
        f"{env['chip']}, {env['os']}, Python {env['python']}, torch {env['torch']}, "
        f"mps-sdpa {env['mps_sdpa']}"
    )
    console.print(f"back ends: {', '.join(found['available_backends'])}")
    for difference in found["messages"].get("differences", []):
        console.print(f"[yellow]unlike this Mac[/]: {difference}", soft_wrap=True)
    table = Table("dtype", "largest error", "with gradients", "allowed", "")
    for name, check in found["correctness"].items():
        mark = "[green]pass[/]" if check["pass"] else "[red]FAIL[/]"
        table.add_row(
            name,
            f"{check['max_abs_diff']:.1e}",
            f"{check['max_abs_diff_gradients']:.1e}",
            f"{check['tol']:.0e}",
            mark,
        )
    shared.print_table(table, console)
    timing = found["benchmark"]
    console.print(
        f"{timing['shape']}: torch {timing['stock_ms']:.2f} ms, {timing['auto_backend']} "
        f"{timing['auto_ms']:.2f} ms, {timing['speedup_auto_vs_stock']:.2f} times as fast"
    )
    console.print(f"{found['status']} in {found['elapsed_s']:.2f} s")


@click.command(short_help="compare a back end with double precision", epilog=_EXAMPLES)
@shared.backend_option("--backend", "auto", "What to check.")
@shared.device_option
@shared.suite_option
@shared.dtype_option
@shared.limit_option
@click.option("--case", "name", help="Only the case of this name.")
@click.option(
    "--pass",
    "which",
    type=click.Choice(["fwd", "train"]),
    default="train",
    show_default=True,
    help="The output alone, or the gradients as well.",
)
@shared.threads_option
@shared.json_option
@click.option("--out", type=shared.writable_file(".json"), help="Write every case to this file.")
def correctness(
    backend: str,
    device: str,
    suite: str,
    dtype: str | None,
    limit: int | None,
    name: str | None,
    which: str,
    threads: int | None,
    as_json: bool,
    out: Path | None,
) -> int:
    """Compares a back end with double precision, case by case."""
    from mps_sdpa.harness import cases, correctness, progress

    shared.set_threads(threads)
    chosen = _choose(cases.suite(suite, dtype=dtype, limit=limit), name)
    gradients = which == "train"
    outcomes = [
        correctness.check(case, backend, device=device, gradients=gradients)
        for case in progress.track(chosen, lambda case: case.name)
    ]
    found = {"suite": suite, "backend": backend, "device": device, **correctness.summary(outcomes)}
    if out is not None:
        results = {**found, "results": [asdict(outcome) for outcome in outcomes]}
        out.write_text(json.dumps(shared.finite(results), indent=1), encoding="utf-8")
    if shared.for_people(as_json):
        _show_correctness(found, outcomes)
    else:
        shared.print_json(shared.finite(found))
    return 0 if found["n_pass"] == found["n"] else 1


def _choose(cases: list[Any], name: str | None) -> list[Any]:
    if name is not None:
        cases = [case for case in cases if case.name == name]
    if not cases:
        wanted = "of these flags" if name is None else f"named {name!r}"
        raise click.UsageError(f"the suite has no case {wanted}")
    return cases


def _show_correctness(found: dict[str, Any], outcomes: list[Any]) -> None:
    console = shared.console()
    for outcome in outcomes:
        if not outcome.passed:
            console.print(f"[red]{outcome.failure_kind}[/] {outcome.case_id}: {outcome.error}")
            console.print(f"    reproduce: {outcome.reproduce}", soft_wrap=True)
    for reason, count in found["refused"].items():
        console.print(f"[yellow]{count} refused[/]: {reason}")
    largest = max((outcome.max_abs_err or 0.0 for outcome in outcomes), default=0.0)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["failures_by_kind"].items())
    failed = found["n"] - found["n_pass"]
    console.print(
        f"{found['suite']} on {found['backend']}: {found['n_pass']} of {found['n']} passed, "
        f"{failed} failed{f' ({kinds})' if kinds else ''}, {found['n_refused']} refused; "
        f"largest error {largest:.1e}"
    )
