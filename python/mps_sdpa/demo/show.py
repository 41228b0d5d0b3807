# SPDX-License-Identifier: MIT
"""What the demo prints."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import mps_sdpa
from mps_sdpa.demo.model import Attend
from mps_sdpa.demo.train import Recipe, Text, Trainee, train_in_turn
from mps_sdpa.stock import original as stock_function

_SAMPLE_BYTES = 240


def run(text: Text, recipe: Recipe, console: Console) -> None:
    """Trains both models and shows the run from the text to a sample of what was learnt."""
    start = time.perf_counter()
    trainees = _trainees(recipe)
    console.print(_opening(text, recipe, trainees[1]))
    _train(trainees, text, recipe, console)
    console.print(_results(*trainees))
    console.print(_verdict(*trainees))
    prompt = text.content[: recipe.size.context // 8]
    sample = trainees[1].model.continue_text(prompt[-64:], _SAMPLE_BYTES)
    title = "what our model writes, after 64 bytes of the text"
    console.print(Panel(escape(_printable(sample)), title=title, title_align="left"))
    console.print(f"All of it took {time.perf_counter() - start:.0f} s.")


def as_json(text: Text, recipe: Recipe) -> dict[str, Any]:
    """Trains both models without showing it, and says what came of it."""
    trainees = _trainees(recipe)
    train_in_turn(trainees, text, recipe, lambda step: None)
    return {
        "text": text.name,
        "steps": recipe.steps,
        "device": recipe.device,
        "parameters": trainees[0].model.parameter_count(),
        **{trainee.name: trainee.measurements() for trainee in trainees},
        "largest_loss_difference": _largest_difference(*trainees),
    }


def _trainees(recipe: Recipe) -> tuple[Trainee, Trainee]:
    return (
        Trainee("torch", _torch_attention(), recipe),
        Trainee("ours", _our_attention(), recipe),
    )


def _largest_difference(stock: Trainee, ours: Trainee) -> float:
    return max(abs(a - b) for a, b in zip(stock.losses, ours.losses, strict=True))


def _torch_attention() -> Attend:
    return lambda query, key, value: stock_function(query, key, value, is_causal=True)


def _our_attention() -> Attend:
    return lambda query, key, value: mps_sdpa.sdpa_opt(query, key, value, is_causal=True)


def _opening(text: Text, recipe: Recipe, trainee: Trainee) -> Panel:
    size = recipe.size
    lines = (
        f"text     {escape(text.name)}, {len(text.content):,} bytes",
        f"model    {size.layers} layers, {size.heads} heads of {size.dim // size.heads}, "
        f"context {size.context}, {trainee.model.parameter_count():,} parameters, float32",
        f"training {recipe.steps} steps of {recipe.batch} x {size.context} bytes on "
        f"{recipe.device} with {torch.get_num_threads()} threads, twice from one seed:",
        "         torch's own attention, and ours (mps_sdpa.sdpa_opt); one step of each in turn",
    )
    return Panel("\n".join(lines), title="mps-sdpa demo", title_align="left")


def _train(trainees: tuple[Trainee, Trainee], text: Text, recipe: Recipe, console: Console) -> None:
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    console.print("step   loss: torch        ours  difference    step time: torch      ours")
    with bar:
        task = bar.add_task("", total=recipe.steps)

        def report(step: int) -> None:
            stock, ours = trainees
            console.print(
                f"{step + 1:4d}  {stock.losses[-1]:12.7f}{ours.losses[-1]:12.7f}"
                f"{ours.losses[-1] - stock.losses[-1]:+12.1e}"
                f"{stock.step_seconds[-1] * 1e3:16.0f} ms{ours.step_seconds[-1] * 1e3:7.0f} ms",
                highlight=False,
            )
            bar.advance(task)

        train_in_turn(trainees, text, recipe, report)


def _results(stock: Trainee, ours: Trainee) -> Table:
    table = Table(title="result", title_justify="left")
    table.add_column("")
    table.add_column("torch", justify="right")
    table.add_column("ours", justify="right")
    rows = {
        "last loss": [f"{t.losses[-1]:.7f}" for t in (stock, ours)],
        "time a step (median)": [f"{t.step_ms:.0f} ms" for t in (stock, ours)],
        "attention's share": [f"{t.attention_share:.0%}" for t in (stock, ours)],
        "attention a step": [
            f"{sum(t.attention_seconds) / len(t.attention_seconds) * 1e3:.0f} ms"
            for t in (stock, ours)
        ],
        "peak memory of a step": [_megabytes(t.peak_bytes) for t in (stock, ours)],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _megabytes(size: int | None) -> str:
    return "not measured here" if size is None else f"{size / 2**20:.0f} MB"


def _verdict(stock: Trainee, ours: Trainee) -> str:
    largest = _largest_difference(stock, ours)
    spent = [sum(t.attention_seconds) for t in (stock, ours)]
    return (
        f"The two loss curves differ by at most {largest:.1e}. Attention runs "
        f"{spent[0] / spent[1]:.2f} times as fast as torch's, a whole step "
        f"{stock.step_ms / ours.step_ms:.2f} times."
    )


def _printable(content: bytes) -> str:
    text = content.decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
