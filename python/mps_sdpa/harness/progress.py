# SPDX-License-Identifier: MIT
"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def track(items: list[Item], text: Callable[[Item], str]) -> Iterator[Item]:
    """The items, with a bar that names the one at hand."""
    errors = Console(stderr=True, highlight=False)
    width = max(10, min(40, errors.width - 40))
    bar = Progress(
        TextColumn(f"{{task.description:{width}.{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=len(items))
        for item in items:
            bar.update(task, description=text(item))
            yield item
            bar.advance(task)
