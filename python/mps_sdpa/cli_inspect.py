# SPDX-License-Identifier: MIT
"""`mps-sdpa list-backends`, `explain` and `calibrate`: what would run, and why."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from mps_sdpa import cli_options as shared


@click.command("list-backends", short_help="the back ends, and why not")
@shared.json_option
def list_backends(as_json: bool) -> None:
    """The back ends in order of preference, with the reason why one cannot be used here."""
    from mps_sdpa import backends

    reasons = {name: backends.reason_against(name) for name in backends.NAMES}
    if as_json:
        listed = [{"name": n, "available": not why, "reason": why} for n, why in reasons.items()]
        shared.print_json(listed)
        return
    if not shared.for_people():
        print("\n".join(name for name, why in reasons.items() if not why))
        return
    table = Table("back end", "here", "why not")
    for name, why in reasons.items():
        table.add_row(name, "[dim]no[/]" if why else "[green]yes[/]", why or "")
    shared.print_table(table, shared.console())


_LARGEST = 2**31 - 1


class ShapeType(click.ParamType[tuple[int, ...]]):
    """B,H,Lq,Lk,D; H may be query heads/key heads, D may be key dim/value dim."""

    name = "B,H,Lq,Lk,D"

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> tuple[int, ...]:
        parts = str(value).split(",")
        try:
            batch, heads, q_len, kv_len, dim = parts
            numbers = (int(batch), *_pair(heads), int(q_len), int(kv_len), *_pair(dim))
        except ValueError:
            self.fail(f"{value!r} must be five numbers B,H,Lq,Lk,D such as 1,32/8,128,128,64")
        if min(numbers) < 1 or max(numbers) > _LARGEST:
            self.fail(f"{value!r} must have positive numbers only, up to {_LARGEST}")
        return numbers


def _pair(text: str) -> tuple[int, int]:
    """ "32/8" as (32, 8) and "8" as (8, 8)."""
    first, _, second = text.partition("/")
    return int(first), int(second or first)


@click.command(
    short_help="which back end, which kernel, and why",
    epilog="\b\nExamples:\n  mps-sdpa explain --shape 1,8,1024,1024,64\n"
    "  mps-sdpa explain --shape 1,32/8,1,4096,128 --dtype bf16 --causal lower_right\n"
    "  mps-sdpa explain --chip M4 --train --json",
)
@click.option("--backend", type=click.Choice(shared.BACKENDS), default="auto", show_default=True)
@shared.device_option
@click.option("--shape", type=ShapeType(), default="1,8,1024,1024,64", show_default=True)
@click.option("--dtype", type=click.Choice(shared.DTYPES), default="fp32", show_default=True)
@click.option(
    "--causal",
    type=click.Choice(["no", "upper_left", "lower_right"]),
    default="no",
    show_default=True,
)
@click.option("--window", type=(int, int), help="Keys to the left and right; -1 is open.")
@click.option("--softcap", type=click.FloatRange(min=0), default=0.0)
@click.option("--dropout", type=click.FloatRange(0, 1), default=0.0)
@click.option("--mask", type=click.Choice(["none", "bool", "additive", "keys"]), default="none")
@click.option("--train", is_flag=True, help="Explain the backward pass.")
@click.option(
    "--chip",
    help="Plan for the Metal kernels of this chip, m1 to m5-max, which need not be here.",
)
@shared.json_option
def explain(shape: tuple[int, ...], as_json: bool, chip: str | None, **flags: Any) -> None:
    """Which back end would run a problem, which kernel, and what the others have against it."""
    try:
        found = _explain_shape(shape, chip, **flags)
    except (RuntimeError, ValueError, TypeError) as error:  # no such problem, or no memory for it
        raise click.UsageError(str(error).partition("\n")[0]) from None
    if as_json:
        shared.print_json(found)
        return
    _show_explanation(found)


def _explain_shape(
    shape: tuple[int, ...],
    chip: str | None,
    *,
    backend: str,
    device: str,
    dtype: str,
    causal: str,
    window: tuple[int, int] | None,
    softcap: float,
    dropout: float,
    mask: str,
    train: bool,
) -> dict[str, Any]:
    import torch

    from mps_sdpa import explanation
    from mps_sdpa.arguments import attention_settings
    from mps_sdpa.harness.cases import DTYPES, LONG_NAMES

    batch, q_heads, kv_heads, q_len, kv_len, qk_dim, v_dim = shape
    element = DTYPES[LONG_NAMES[dtype]]

    def empty(*extents: int) -> torch.Tensor:
        return torch.empty(extents, dtype=element, device=device)

    masks = {
        "none": None,
        "bool": torch.ones(1, dtype=torch.bool, device=device).expand(q_len, kv_len),
        "additive": empty(q_len, kv_len),
        "keys": torch.ones(1, dtype=torch.bool, device=device).expand(batch, 1, 1, kv_len),
    }
    tensors = (
        empty(batch, q_heads, q_len, qk_dim),
        empty(batch, kv_heads, kv_len, qk_dim),
        empty(batch, kv_heads, kv_len, v_dim),
    )
    aligned: bool | str = False if causal == "no" else causal
    if chip is not None or _is_absent_metal(backend):
        settings = attention_settings(aligned, window, softcap, dropout, None, 0, backend)
        pass_ = "backward" if train else "forward"
        return explanation.explain_on_chip(chip or "M4", *tensors, masks[mask], settings, pass_)
    return explanation.explain(
        *tensors,
        mask=masks[mask],
        causal=aligned,
        window=window,
        softcap=softcap,
        dropout=dropout,
        backend=backend,
        training=train,
        quiet=True,
    )


def _is_absent_metal(backend: str) -> bool:
    """Whether it is one whose plan can be shown although it cannot run here. Others that cannot
    are a mistake."""
    from mps_sdpa import backends

    reason = None if backend == "auto" else backends.reason_against(backend)
    if reason is None:
        return False
    if backend in ("metal", "metal_proto"):
        return True
    raise click.UsageError(f"back end {backend!r} is not available: {reason}")


def _show_explanation(found: dict[str, Any]) -> None:
    from mps_sdpa.explanation import HOW_TO_CHANGE

    console = shared.console()
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("problem", f"{found['problem']}, {found['pass']}")
    table.add_row("back end", f"[bold]{found['backend']}[/]")
    table.add_row("why", found["why"])
    if found["plan"]:
        table.add_row("plan", found["plan"])
    if found.get("estimate"):
        table.add_row("estimate", found["estimate"].rstrip())
    table.add_row("calibration", found["calibration"])
    for name, reason in found["rejected"].items():
        table.add_row(f"not {name}", reason)
    table.add_row("change it", HOW_TO_CHANGE)
    console.print(table)
    for kernel, source in found.get("source", {}).items():
        console.print(f"\n// ---- {kernel} ----\n{source}", markup=False, soft_wrap=True)


@click.command(
    short_help="measure the crossovers",
    epilog="\b\nExamples:\n  mps-sdpa calibrate --show\n  mps-sdpa calibrate --force",
)
@shared.device_option
@click.option("--force", is_flag=True, help="Measure again although a result is kept.")
@click.option("--show", is_flag=True, help="Only show what is kept; measure nothing.")
@shared.json_option
def calibrate(device: str, force: bool, show: bool, as_json: bool) -> None:
    """Measures from which amount of work on each back end beats torch, per dtype, pass and head
    dimension."""
    from mps_sdpa import calibration, threshold_cache

    kept = threshold_cache.read(device)
    thresholds = kept if show else calibration.calibrate(device, force)
    found = {
        "device": device,
        "file": str(threshold_cache.cache_file()),
        "kept": threshold_cache.read(device) is not None,
        "minimum_work": thresholds,
    }
    if not shared.for_people(as_json):
        shared.print_json(shared.finite(found))
        return
    if thresholds is None:
        shared.console().print(f"nothing is kept for {device}: the built-in order serves")
        return
    table = Table("pass", "dtype", "head dimensions to", "from which work on")
    for which, each in thresholds.items():
        for dtype in calibration.MEASURED:
            for dim, rungs in each[dtype].items():
                table.add_row(which, dtype, str(dim), calibration.in_words(rungs))
    shared.print_table(table, shared.console())
    shared.console().print("work is batch x heads x visible pairs x key dimension")
    if not show and not found["kept"]:
        shared.console().print(calibration.calibration_summary(device))
