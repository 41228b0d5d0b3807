# SPDX-License-Identifier: MIT
"""`mps-sdpa demo`."""

from __future__ import annotations

from pathlib import Path

import click

from mps_sdpa import cli_options as shared


@click.command(
    short_help="train a small language model twice",
    epilog="\b\nExamples:\n  mps-sdpa demo --steps 5\n  mps-sdpa demo --text README.md",
)
@click.option(
    "--text",
    "path",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    help="The text to learn. [default: CPython's pydoc_data/topics.py]",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=60, show_default=True, help="Training steps."
)
@shared.device_option
@shared.json_option
def demo(path: Path | None, steps: int, device: str, as_json: bool) -> None:
    """Trains a small language model with torch's attention and with ours from one seed."""
    from mps_sdpa.demo import show
    from mps_sdpa.demo.train import Recipe, Text

    text = Text.of_python() if path is None else Text.read(path)
    recipe = Recipe(steps=steps, device=device)
    shortest = recipe.size.context + 1
    if len(text.content) < shortest:
        raise click.UsageError(
            f"the text must have at least {shortest} bytes; {text.name} has {len(text.content)}"
        )
    if as_json:
        shared.print_json(shared.finite(show.as_json(text, recipe)))
    else:
        show.run(text, recipe, shared.console())
