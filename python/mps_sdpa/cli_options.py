# SPDX-License-Identifier: MIT
"""Flags, choices and output that several subcommands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from mps_sdpa.environment import MOST_THREADS

Command = TypeVar("Command", bound=Callable[..., Any])

SUITES = [
    "realistic",
    "correctness",
    "extended",
    "general",
    "models",
    "masks",
    "training",
    "decode",
    "short",
    "speed",
    "conformance",
]
BACKENDS = ["auto", "metal", "mpsgraph_zc", "mpsgraph", "metal_proto", "cpu", "stock"]
DTYPES = ["fp32", "fp16", "bf16", "fp64"]

suite_option = click.option(
    "--suite", type=click.Choice(SUITES), default="realistic", show_default=True, help="The cases."
)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="At most so many cases, spread over the suite."
)
dtype_option = click.option("--dtype", type=click.Choice(DTYPES), help="Only cases of this dtype.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    help="Threads of torch and of us. [default: torch's]",
)


def backend_option(flag: str, default: str, text: str) -> Callable[[Command], Command]:
    """A flag that takes a back end's name; whether it can be used here is checked at once."""
    return click.option(
        flag,
        type=click.Choice(BACKENDS),
        default=default,
        show_default=True,
        callback=_check_backend,
        help=text,
    )


def _check_backend(context: click.Context, parameter: click.Parameter, name: str) -> str:
    from mps_sdpa import backend_status

    if reason := backend_status()["unavailable"].get(name):
        raise click.UsageError(f"back end {name!r} is not available: {reason}")
    return name


def device_option(command: Command) -> Command:
    return click.option(
        "--device",
        type=click.Choice(["mps", "cpu"]),
        callback=_check_device,
        help="Where to run. [default: the best present]",
    )(command)


def _check_device(context: click.Context, parameter: click.Parameter, name: str | None) -> str:
    import torch

    if name is None:
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise click.UsageError("device 'mps' is not present: torch finds no Apple GPU here")
    return name


def writable_file(*suffixes: str) -> click.ParamType[Path]:
    """A path to write to, with one of these suffixes, in a folder that exists."""
    return _WritableFile(suffixes)


class _WritableFile(click.ParamType[Path]):
    name = "file"

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self.suffixes = suffixes

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path.suffix not in self.suffixes:
            self.fail(f"{value!r} must end in {', '.join(self.suffixes)}", param, ctx)
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            self.fail(f"the folder of {value!r} does not exist or cannot be written", param, ctx)
        return path


def set_threads(threads: int | None) -> None:
    """Threads of torch and of the engine alike."""
    if threads is None:
        return
    import torch

    from mps_sdpa import _core

    torch.set_num_threads(threads)
    _core.set_thread_count(threads)


def for_people(as_json: bool = False) -> bool:
    """Whether to draw tables: only for a terminal, and unless JSON is asked for."""
    return not as_json and sys.stdout is not None and sys.stdout.isatty()


def console() -> Console:
    """Where tables go; rich drops colours where there is no terminal or NO_COLOR is set."""
    return Console(highlight=False)


def print_table(table: Table, to: Console) -> None:
    """A table; where the terminal is too narrow for its words and numbers, row by row."""
    if sum(_least_width(column) for column in table.columns) + 1 <= to.width:
        to.print(table)
        return
    headings = [str(column.header) for column in table.columns]
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        to.print(f"[bold]{name}[/]")
        for heading, cell in zip(headings[1:], cells, strict=True):
            to.print(f"  {escape(heading)}: {cell}" if heading else f"  {cell}")


def _least_width(column: Column) -> int:
    """With its border: of whole cells where they must not be wrapped, else of whole words."""
    texts = [Text.from_markup(str(cell)).plain for cell in (column.header, *column.cells)]
    if column.overflow == "fold":
        texts = []
    pieces = texts if column.no_wrap else [word for text in texts for word in text.split()]
    return 3 + max([column.min_width or 0, *map(cell_len, pieces)])


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, default=str))


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
